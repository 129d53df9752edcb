//! The entry of the Service `kubernetes`, looked at all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use reqwest::Method;

use crate::client::Client;

const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
const LOOK: Duration = Duration::from_millis(50);

/// Watches how long the entry is empty.
pub(crate) struct Slice {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Slice {
    pub(crate) fn watch() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let client = Client::admin();
            let (mut empty_since, mut longest) = (None, Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let answer = runtime.block_on(client.ask(Method::GET, SLICE, None));
                // What fails is counted elsewhere.
                if let Ok((status, slice)) = answer
                    && status.is_success()
                {
                    if slice["endpoints"].as_array().is_none_or(Vec::is_empty) {
                        empty_since.get_or_insert(asked);
                    } else {
                        empty_since = None;
                    }
                }
                longest = longest.max(empty_since.map_or(Duration::ZERO, |since: Instant| since.elapsed()));
                thread::sleep(LOOK);
            }
            longest
        });
        Self { stop, thread }
    }

    /// The longest time without an address.
    pub(crate) fn stop(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
