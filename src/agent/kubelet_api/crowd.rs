//! How many connections one address may have.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections of one address at the same time. An API server needs one for each `kubectl exec` and `kubectl logs`.
const MOST: usize = 64;

/// Counts connections by the address of the client.
#[derive(Debug, Clone, Default)]
pub(super) struct Crowd(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A connection that is counted until this is dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    crowd: Crowd,
    address: IpAddr,
}

impl Crowd {
    /// Counts one more of `address`; `None` when it has as many as it may.
    pub(super) fn admit(&self, address: IpAddr) -> Option<Admitted> {
        let mut counts = self.counts();
        let count = counts.entry(address).or_default();
        if *count >= MOST {
            return None;
        }
        *count += 1;
        Some(Admitted { crowd: self.clone(), address })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.crowd.counts();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_share_and_no_more() {
        let (crowd, one, other) = (Crowd::default(), "10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let mut admitted: Vec<_> = (0..MOST).map(|_| crowd.admit(one).unwrap()).collect();
        assert!(crowd.admit(one).is_none() && crowd.admit(other).is_some());
        admitted.pop();
        admitted.push(crowd.admit(one).unwrap());
        assert!(crowd.admit(one).is_none());
        admitted.clear();
        assert!(crowd.counts().is_empty());
    }
}
