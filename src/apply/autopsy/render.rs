//! An autopsy for people: cause and fix first, then what is known.

use std::fmt;

use crate::logline;

use super::{Autopsy, ComponentDetail, PortOwner};

/// Log lines shown for each component; the JSON form has all.
const LINES: usize = 10;

/// Characters shown of a log line: etcd's stack traces are one line of thousands.
const WIDTH: usize = 300;

impl fmt::Display for Autopsy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "cause: {}", printable(&self.cause))?;
        writeln!(f, "fix:   {}", printable(&self.fix))?;
        writeln!(f)?;
        for component in &self.components {
            write_component(f, component)?;
        }
        for disk in &self.host.disks {
            writeln!(f, "disk {}: {} of {} free", disk.path.display(), bytes(disk.free), bytes(disk.total))?;
        }
        if let Some(available) = self.host.memory_available {
            writeln!(f, "memory: {} available", bytes(available))?;
        }
        for owner in &self.host.ports {
            writeln!(f, "port {} ({}): {}", owner.port, owner.component, port_owner(owner))?;
        }
        for warning in &self.host.warnings {
            writeln!(f, "agent: {}", printable(warning))?;
        }
        Ok(())
    }
}

fn write_component(f: &mut fmt::Formatter<'_>, of: &ComponentDetail) -> fmt::Result {
    let Some(why) = &of.unhealthy else { return writeln!(f, "{}: healthy", of.component) };
    write!(f, "{}: {}", of.component, of.state)?;
    if !of.reason.is_empty() {
        write!(f, ", {}", of.reason)?;
    }
    if let Some(code) = of.exit_code {
        write!(f, ", last exit code {code}{}", if of.oom_killed { " (out of memory)" } else { "" })?;
    }
    match of.restarts {
        0 => {}
        1 => write!(f, ", 1 restart")?,
        n => write!(f, ", {n} restarts")?,
    }
    writeln!(f, "; health: {}", printable(why))?;
    if !of.message.is_empty() {
        writeln!(f, "  {}", printable(&of.message))?;
    }
    let shown = &of.log[of.log.len().saturating_sub(LINES)..];
    // A stack or a usage text can push what matters out of sight.
    if let Some(words) = logline::most_telling(&of.log).filter(|_| of.exit_code.is_some())
        && !shown.iter().any(|line| line.contains(&words) || logline::message(line) == words)
    {
        writeln!(f, "  | {}", printable(&words))?;
        writeln!(f, "  | …")?;
    }
    for line in shown {
        writeln!(f, "  | {}", printable(line))?;
    }
    Ok(())
}

fn port_owner(owner: &PortOwner) -> String {
    let name = if owner.command.is_empty() { "unknown process" } else { owner.command.as_str() };
    let pid = owner.pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    format!("{name}{pid}{}", if owner.ours { ", ours" } else { ", not ours" })
}

/// Bytes as people read them, in powers of 1024.
pub(super) fn bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// What others wrote must neither steer the terminal nor flood it.
fn printable(text: &str) -> String {
    let mut shown: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(WIDTH).collect();
    if text.chars().nth(WIDTH).is_some() {
        shown.push('…');
    }
    shown
}
