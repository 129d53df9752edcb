//! What the host has, and how much of it pods may ask for, as a kubelet counts it. The counting is pure.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::agent::translate::Node;

/// Most pods of a node (kubelet: `maxPods`).
const PODS: u64 = 110;
/// Bytes of memory that are kept from pods (kubelet: `evictionHard`, `memory.available<100Mi`).
pub(super) const KEPT_MEMORY: u64 = 100 << 20;

/// Amounts by the name of what is counted.
pub type Amounts = BTreeMap<String, Quantity>;

/// What the node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capacity {
    /// CPUs.
    pub cpus: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of the file system that pods write to.
    pub storage: u64,
    /// Bytes in huge pages, by the size of one in bytes.
    pub huge_pages: BTreeMap<u64, u64>,
}

impl Capacity {
    /// That of `node`, whose huge pages are in the directory `huge_pages` (`/sys/kernel/mm/hugepages`).
    pub fn of(node: &Node, huge_pages: &Path) -> Self {
        let huge_pages = read_huge_pages(huge_pages);
        Self { cpus: node.cpus, memory: node.memory, storage: node.storage, huge_pages }
    }

    /// `status.capacity`.
    pub fn total(&self) -> Amounts {
        let sizes = [
            ("memory", format!("{}Ki", self.memory >> 10)),
            ("ephemeral-storage", format!("{}Ki", self.storage >> 10)),
        ];
        self.with(sizes)
    }

    /// `status.allocatable`: without what the kubelet evicts at, and memory without huge pages.
    pub fn allocatable(&self) -> Amounts {
        let huge: u64 = self.huge_pages.values().sum();
        let memory = self.memory.saturating_sub(huge).saturating_sub(KEPT_MEMORY);
        // `nodefs.available<10%`.
        let storage = self.storage - self.storage / 10;
        self.with([("memory", format!("{}Ki", memory >> 10)), ("ephemeral-storage", storage.to_string())])
    }

    /// What is missing for a node that is ready (kubelet: "Missing node capacity").
    pub fn missing(&self) -> Vec<&'static str> {
        let all = [("cpu", self.cpus), ("memory", self.memory), ("ephemeral-storage", self.storage)];
        all.into_iter().filter(|(_, amount)| *amount == 0).map(|(name, _)| name).collect()
    }

    fn with(&self, sizes: [(&str, String); 2]) -> Amounts {
        let counts = [("cpu", self.cpus.to_string()), ("pods", PODS.to_string())];
        let plain = counts.into_iter().chain(sizes).map(|(name, amount)| (name.to_owned(), amount));
        let huge = self.huge_pages.iter().map(|(size, bytes)| (format!("hugepages-{}", binary(*size)), binary(*bytes)));
        plain.chain(huge).map(|(name, amount)| (name, Quantity(amount))).collect()
    }
}

/// Bytes as the API writes them: `2Mi`, `0`.
fn binary(bytes: u64) -> String {
    let suffixes = ["", "Ki", "Mi", "Gi", "Ti", "Pi"];
    let fitting =
        (1..suffixes.len()).rev().find(|power| bytes != 0 && bytes.is_multiple_of(1 << (10 * power))).unwrap_or(0);
    format!("{}{}", bytes >> (10 * fitting), suffixes[fitting])
}

/// Nothing where the kernel has none.
fn read_huge_pages(directory: &Path) -> BTreeMap<u64, u64> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let size = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()? << 10;
            let count = std::fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse::<u64>().ok()?;
            Some((size, size.checked_mul(count)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(amounts: Amounts) -> BTreeMap<String, String> {
        amounts.into_iter().map(|(name, Quantity(amount))| (name, amount)).collect()
    }

    #[test]
    fn pods_may_ask_for_what_a_kubelet_leaves_them() {
        let capacity = Capacity {
            cpus: 2,
            memory: 24 << 30,
            storage: 100 << 30,
            huge_pages: [(2 << 20, 4 << 30), (1 << 30, 0)].into(),
        };
        let expected =
            |amounts: [(&str, &str); 6]| amounts.map(|(name, amount)| (name.to_owned(), amount.to_owned())).into();
        let total = expected([
            ("cpu", "2"),
            ("memory", "25165824Ki"),
            ("ephemeral-storage", "104857600Ki"),
            ("pods", "110"),
            ("hugepages-2Mi", "4Gi"),
            ("hugepages-1Gi", "0"),
        ]);
        assert_eq!(texts(capacity.total()), total);
        let allocatable = expected([
            ("cpu", "2"),
            ("memory", "20869120Ki"),
            ("ephemeral-storage", "96636764160"),
            ("pods", "110"),
            ("hugepages-2Mi", "4Gi"),
            ("hugepages-1Gi", "0"),
        ]);
        assert_eq!(texts(capacity.allocatable()), allocatable);
        assert_eq!(capacity.missing(), [""; 0]);
        assert_eq!(Capacity { memory: 0, ..capacity }.missing(), ["memory"]);
        // Less than what is kept.
        let small = Capacity { cpus: 1, memory: 64 << 20, storage: 0, huge_pages: BTreeMap::new() };
        assert_eq!(texts(small.allocatable())["memory"], "0Ki");
    }

    #[test]
    fn huge_pages_are_read_from_the_kernels_files() {
        let root = tempfile::tempdir().unwrap();
        for (name, count) in [("hugepages-2048kB", "3\n"), ("hugepages-1048576kB", "0\n"), ("other", "1\n")] {
            std::fs::create_dir(root.path().join(name)).unwrap();
            std::fs::write(root.path().join(name).join("nr_hugepages"), count).unwrap();
        }
        assert_eq!(read_huge_pages(root.path()), [(2 << 20, 6 << 20), (1 << 30, 0)].into());
        assert_eq!(read_huge_pages(Path::new("/no/such")), BTreeMap::new());
    }
}
