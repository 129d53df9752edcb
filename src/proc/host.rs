//! Facts about the host and about our own rights.

use super::{Proc, Result, field};

/// Memory of the host, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What the kernel has (`MemTotal`).
    pub total: u64,
    /// What a new program could get without swapping (`MemAvailable`).
    pub available: u64,
}

/// A swap area in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    /// Device or file.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
}

/// A set of capabilities, see capabilities(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Number of `CAP_SYS_RESOURCE` in the kernel's `capability.h`.
    const SYS_RESOURCE: u32 = 24;

    /// Whether `CAP_SYS_RESOURCE` is in it: without it, a process cannot lower an `oom_score_adj`.
    pub fn sys_resource(self) -> bool {
        self.0 >> Self::SYS_RESOURCE & 1 == 1
    }
}

impl Proc {
    /// Memory of the host.
    pub fn memory(&self) -> Result<Memory> {
        let text = self.read("meminfo")?;
        let bytes = |key| field(&text, key)?.strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024);
        let (Some(total), Some(available)) = (bytes("MemTotal"), bytes("MemAvailable")) else {
            return Err(self.malformed("meminfo", "MemTotal and MemAvailable"));
        };
        Ok(Memory { total, available })
    }

    /// Resident memory of the process `pid` in bytes (`VmRSS`); `None` when it is gone, or a kernel thread.
    pub fn resident(&self, pid: i32) -> Result<Option<u64>> {
        let status = self.read_optional(&format!("{pid}/status"))?;
        Ok(status.and_then(|text| {
            let kib = field(&text, "VmRSS")?.strip_suffix(" kB")?.trim().parse::<u64>().ok()?;
            kib.checked_mul(1024)
        }))
    }

    /// Swap areas in use; none where the kernel has no swap at all.
    pub fn swaps(&self) -> Result<Vec<Swap>> {
        let text = self.read_optional("swaps")?.unwrap_or_default();
        Ok(text
            .lines()
            .skip(1)
            .filter_map(|line| {
                let mut fields = line.split_whitespace();
                let name = fields.next()?.to_owned();
                let size = fields.nth(1)?.parse::<u64>().ok()?.checked_mul(1024)?;
                Some(Swap { name, size })
            })
            .collect())
    }

    /// What we may do.
    pub fn effective_capabilities(&self) -> Result<Capabilities> {
        field(&self.read("self/status")?, "CapEff")
            .and_then(|set| u64::from_str_radix(set, 16).ok())
            .map(Capabilities)
            .ok_or_else(|| self.malformed("self/status", "CapEff"))
    }

    /// Number of processors we may run on (what Go's `runtime.NumCPU` counts, and so kubeadm).
    pub fn cpus(&self) -> Result<usize> {
        field(&self.read("self/status")?, "Cpus_allowed_list")
            .and_then(count_list)
            .ok_or_else(|| self.malformed("self/status", "Cpus_allowed_list"))
    }
}

/// How many numbers a list such as `0-3,8` names.
fn count_list(list: &str) -> Option<usize> {
    list.split(',')
        .map(|range| {
            let (low, high) = range.split_once('-').unwrap_or((range, range));
            let (low, high): (usize, usize) = (low.parse().ok()?, high.parse().ok()?);
            Some(high.checked_sub(low)? + 1)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::*;

    #[test]
    fn facts_are_read_in_bytes() {
        let fixture = Fixture::new();
        fixture.write("meminfo", "MemTotal:       24684100 kB\nMemFree: 1 kB\nMemAvailable:    1024 kB\n");
        fixture.write(
            "swaps",
            "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/sda2   partition\t1048572\t0\t-2\n",
        );
        fixture.write("self/status", "Name:\tx\nCapEff:\t000001fffeffffff\nCpus_allowed_list:\t0-2,5\n");
        let proc = fixture.proc();
        assert_eq!(proc.memory().unwrap(), Memory { total: 24_684_100 * 1024, available: 1024 * 1024 });
        assert_eq!(proc.swaps().unwrap(), [Swap { name: "/dev/sda2".into(), size: 1_048_572 * 1024 }]);
        assert_eq!(proc.cpus().unwrap(), 4);
        assert!(!proc.effective_capabilities().unwrap().sys_resource());
        assert!(Capabilities(1 << 24).sys_resource());
    }

    #[test]
    fn what_the_kernel_does_not_document_is_an_error_that_names_the_file() {
        let fixture = Fixture::new();
        for name in ["meminfo", "self/status"] {
            fixture.write(name, "nonsense\n");
        }
        let proc = fixture.proc();
        let errors = [
            proc.memory().unwrap_err().to_string(),
            proc.effective_capabilities().unwrap_err().to_string(),
            proc.cpus().unwrap_err().to_string(),
        ];
        for (error, expected) in errors.iter().zip(["meminfo", "self/status", "self/status"]) {
            assert!(error.contains(&format!("{expected}` has no ")), "{error}");
        }
        assert_eq!(proc.swaps().unwrap(), [], "no file, no swap");
        let missing = Fixture::new().proc().memory().unwrap_err();
        assert!(missing.to_string().starts_with("cannot read `"), "{missing}");
    }

    #[test]
    fn lists_of_processors_are_counted() {
        for (list, expected) in
            [("0", Some(1)), ("0-1", Some(2)), ("0-3,8,10-11", Some(7)), ("", None), ("3-1", None), ("a", None)]
        {
            assert_eq!(count_list(list), expected, "{list}");
        }
    }

    #[test]
    fn the_kernels_own_proc_has_every_fact() {
        let proc = Proc::default();
        assert!(proc.memory().unwrap().total >= proc.memory().unwrap().available);
        assert!(proc.cpus().unwrap() >= 1);
        proc.swaps().unwrap();
        proc.effective_capabilities().unwrap();
        proc.cgroups().unwrap();
    }
}
