//! Counters for `/metrics`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::probe::ProbeKind;

/// Labels of what is counted per container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ContainerLabels {
    namespace: String,
    pod: String,
    container: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProbeLabels {
    namespace: String,
    pod: String,
    probe: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabels {
    action: &'static str,
    result: &'static str,
}

/// The agent's counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pods: Gauge,
    restarts: Family<ContainerLabels, Counter>,
    probe_failures: Family<ProbeLabels, Counter>,
    actions: Family<ActionLabels, Counter>,
}

impl Metrics {
    /// Counters at zero.
    pub fn new(version: &str) -> Self {
        let mut registry = Registry::with_prefix("plinth_agent");
        let metrics = (Gauge::default(), Family::default(), Family::default(), Family::default());
        let (pods, restarts, probe_failures, actions) = metrics;
        registry.register("pods", "Static pods that are wanted", Gauge::clone(&pods));
        registry.register("container_restarts", "Containers started again", Family::clone(&restarts));
        registry.register("probe_failures", "Probes that failed", Family::clone(&probe_failures));
        registry.register("actions", "Calls to the container runtime", Family::clone(&actions));
        registry.register("build", "The plinth that runs", Info::new(vec![("version", version.to_owned())]));
        Self { registry, pods, restarts, probe_failures, actions }
    }

    /// How many pods are wanted.
    pub fn set_pods(&self, count: usize) {
        self.pods.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A container was started again.
    pub fn restarted(&self, namespace: &str, pod: &str, container: &str) {
        let labels =
            ContainerLabels { namespace: namespace.to_owned(), pod: pod.to_owned(), container: container.to_owned() };
        self.restarts.get_or_create(&labels).inc();
    }

    /// A probe failed (a change of its answer, not each repetition).
    pub fn probe_failed(&self, namespace: &str, pod: &str, probe: ProbeKind) {
        let labels = ProbeLabels { namespace: namespace.to_owned(), pod: pod.to_owned(), probe: probe.as_str() };
        self.probe_failures.get_or_create(&labels).inc();
    }

    /// A call to the runtime ended.
    pub fn acted(&self, action: &'static str, succeeded: bool) {
        let result = if succeeded { "success" } else { "failure" };
        self.actions.get_or_create(&ActionLabels { action, result }).inc();
    }

    /// The counters in the `OpenMetrics` text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
