//! Log lines of containers, without their wrapping: klog (Kubernetes) and zap's JSON (etcd).

/// Longest text of somebody else in a message of ours, in bytes.
const LONGEST: usize = 600;

/// `text` without what would break a line of a log or a table or have a terminal do something (control characters are
/// shown as Rust writes them, `\u{1b}`), and cut if it is very long. For words of others in a message of ours: manifests,
/// logs and answers of containers.
pub fn in_one_line(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars() {
        if line.len() >= LONGEST {
            line.push('…');
            break;
        }
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// How bad the writer thinks it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// `I`, debug, info.
    Information,
    /// `W`, warn.
    Warning,
    /// `E`, error.
    Error,
    /// `F`, panic, fatal, and whatever has no severity.
    Fatal,
}

/// The severity of a line. One without any (a panic, a usage error before logging is set up) is the process's last
/// word, and so fatal.
pub fn severity(line: &str) -> Severity {
    let has = |level: &str| line.contains(&format!(r#""level":"{level}""#));
    match line.chars().next() {
        Some('I') if is_klog(line) => Severity::Information,
        Some('W') if is_klog(line) => Severity::Warning,
        // How Kubernetes components report the error that ends them.
        Some('E') if is_klog(line) && line.contains(r#"] "command failed" "#) => Severity::Fatal,
        Some('E') if is_klog(line) => Severity::Error,
        Some('{') if has("debug") || has("info") => Severity::Information,
        Some('{') if has("warn") => Severity::Warning,
        Some('{') if has("error") => Severity::Error,
        _ => Severity::Fatal,
    }
}

/// What a line says: message and error, without time, place and stack.
pub fn message(line: &str) -> String {
    let said = if line.starts_with('{') { zap(line) } else { klog(line) };
    said.unwrap_or_else(|| line.trim().to_owned())
}

fn zap(line: &str) -> Option<String> {
    let entry: serde_json::Value = serde_json::from_str(line).ok()?;
    let message = entry.get("msg")?.as_str()?;
    match entry.get("error").and_then(serde_json::Value::as_str) {
        Some(error) => Some(format!("{message}: {error}")),
        None => Some(message.to_owned()),
    }
}

/// `E1121 07:57:26.681275       1 run.go:72] "command failed" err="unrecognized feature gate: Nope"`
fn klog(line: &str) -> Option<String> {
    if !is_klog(line) {
        return None;
    }
    let (_, said) = line.split_once("] ")?;
    // The quoted error is what matters; a structured line goes on with other keys.
    let quoted = said.split_once(" err=").map(|(_, rest)| rest).filter(|rest| rest.starts_with('"'));
    let error = quoted.and_then(|rest| {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        values.next()?.ok()
    });
    Some(error.unwrap_or_else(|| said.trim().to_owned()))
}

fn is_klog(line: &str) -> bool {
    let mut characters = line.chars();
    characters.next().is_some_and(|severity| "IWEF".contains(severity))
        && characters.by_ref().take(4).all(|c| c.is_ascii_digit())
}

/// The line that says best why a process ended: the last fatal one in a log's form or `panic:`, `Error:` or a refused
/// flag in none, else the last error, else the last line.
pub fn most_telling(log: &[String]) -> Option<String> {
    let wrapped = |line: &str| line.starts_with('{') || is_klog(line);
    let fatal = |line: &&String| {
        (wrapped(line) && severity(line) == Severity::Fatal)
            || line.starts_with("panic: ")
            || line.starts_with("Error: ")
            // Go's flag package says so above all of the usage.
            || line.starts_with("flag provided but not defined: ")
            || (line.starts_with("invalid ") && line.contains(" for flag -"))
    };
    let error = |line: &&String| wrapped(line) && severity(line) == Severity::Error;
    let last = |line: &&String| !line.trim().is_empty();
    let lines = || log.iter().rev();
    lines().find(fatal).or_else(|| lines().find(error)).or_else(|| lines().find(last)).map(|line| message(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapping_is_taken_off() {
        for (line, expected) in [
            (
                r#"E1121 07:57:26.681275       1 run.go:72] "command failed" err="plugin \"Nope\" is unknown""#,
                "plugin \"Nope\" is unknown",
            ),
            (
                r#"E1121 08:07:46.990764       1 reflector.go:227] "Failed to watch" err="Unauthorized" logger="x""#,
                "Unauthorized",
            ),
            (
                "I1121 07:57:33.663766       1 serving.go:411] Generated self-signed cert in-memory",
                "Generated self-signed cert in-memory",
            ),
            (
                r#"{"level":"fatal","caller":"a.go:1","msg":"discovery failed","error":"listen: no","stacktrace":"x"}"#,
                "discovery failed: listen: no",
            ),
            (r#"{"level":"info","msg":"closed etcd server"}"#, "closed etcd server"),
            (r#"{"level":"info","msg":"cut o"#, r#"{"level":"info","msg":"cut o"#),
            ("Error: unknown flag: --bogus-flag", "Error: unknown flag: --bogus-flag"),
            ("", ""),
        ] {
            assert_eq!(message(line), expected);
        }
    }

    #[test]
    fn nothing_of_others_breaks_a_line_or_moves_a_terminals_cursor() {
        for (text, expected) in [
            ("größe", "größe"),
            ("a\nb\tc", "a\\nb\\tc"),
            ("\u{1b}[2Jgone\u{7}", "\\u{1b}[2Jgone\\u{7}"),
            ("\u{9b}31m\u{2028}", "\\u{9b}31m\\u{2028}"),
        ] {
            assert_eq!(in_one_line(text), expected);
        }
        assert_eq!(in_one_line(&"x".repeat(700)), format!("{}…", "x".repeat(600)));
    }

    #[test]
    fn severities_are_read() {
        for (line, expected) in [
            ("I1121 08:00:00.0 1 a.go:1] x", Severity::Information),
            ("W1121 08:00:00.0 1 a.go:1] x", Severity::Warning),
            ("E1121 08:00:00.0 1 a.go:1] x", Severity::Error),
            ("E1121 08:00:00.0 1 run.go:72] \"command failed\" err=\"x\"", Severity::Fatal),
            ("F1121 08:00:00.0 1 a.go:1] x", Severity::Fatal),
            (r#"{"level":"info","msg":"x"}"#, Severity::Information),
            (r#"{"level":"warn","msg":"x"}"#, Severity::Warning),
            (r#"{"level":"error","msg":"x"}"#, Severity::Error),
            (r#"{"level":"panic","msg":"x"}"#, Severity::Fatal),
            ("Invalid", Severity::Fatal),
            ("panic: x", Severity::Fatal),
        ] {
            assert_eq!(severity(line), expected, "{line}");
        }
    }

    #[test]
    fn the_most_telling_line_wins() {
        let log = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        for (lines, expected) in [
            (&["F1121 0] hook failed", "E1121 0] later", "I1121 0] bye"][..], Some("hook failed")),
            (&["E1121 0] early", "E1121 0] late", "I1121 0] bye"], Some("late")),
            (&["panic: nil", "", "goroutine 1 [running]:", "main.main()"], Some("panic: nil")),
            (&["I1121 0] bye", ""], Some("bye")),
            (
                &["invalid value \"x\" for flag -v: parse error", "Usage:", "  -v"],
                Some("invalid value \"x\" for flag -v: parse error"),
            ),
            (&[], None),
        ] {
            assert_eq!(most_telling(&log(lines)).as_deref(), expected);
        }
    }
}
