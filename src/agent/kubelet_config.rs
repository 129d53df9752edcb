//! The agent's settings in the kubelet's format: `kubelet.config.k8s.io/v1beta1`, kind `KubeletConfiguration`.
//!
//! # Guarantees
//! - What concerns static pods is honoured. Other fields that a kubelet knows are ignored, with one note that lists
//!   them. A field that it does not know is an error with file, line and name, as are values of the wrong type: the
//!   kubelet reads its own file strictly, too.
//! - All errors are reported together. None of them, and no `Debug`, shows the value of a header.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::quantity;
use super::step::Timings;
use super::translate::LogLimits;
use crate::config::{ConfigError, ConfigErrors, ConfigFile, Place, Problem, duration};
use crate::yaml::{self, Node, Tree};

/// What is read.
const KIND: (&str, &str) = ("kubelet.config.k8s.io/v1beta1", "KubeletConfiguration");

/// Bounds of `maxContainerRestartPeriod` (kubelet: `ValidateKubeletConfiguration`).
const RESTART_PERIOD: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_mins(5);

/// What a file says; `None` and empty where it says nothing.
#[derive(Clone, Default)]
pub struct KubeletConfig {
    /// `staticPodPath`, absolute: relative ones are taken from the file's directory.
    pub static_pod_path: Option<PathBuf>,
    /// `staticPodURL`.
    pub static_pod_url: Option<String>,
    /// `staticPodURLHeader`.
    pub static_pod_url_header: Vec<(String, String)>,
    /// `fileCheckFrequency`.
    pub file_check_frequency: Option<Duration>,
    /// `httpCheckFrequency`.
    pub http_check_frequency: Option<Duration>,
    /// `crashLoopBackOff.maxContainerRestartPeriod`.
    pub max_container_restart_period: Option<Duration>,
    /// `podLogsDir`.
    pub pod_logs_dir: Option<PathBuf>,
    /// `containerLogMaxSize`, bytes; 0 where the file turns rotation off with a negative value.
    pub container_log_max_size: Option<u64>,
    /// `containerLogMaxFiles`.
    pub container_log_max_files: Option<u32>,
    /// What port 10250 is served with.
    pub server: ServerConfig,
    /// Fields that mean nothing here, in the file's order.
    pub ignored: Vec<String>,
}

/// What a file says of the HTTPS interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerConfig {
    /// `enableServer`.
    pub enabled: Option<bool>,
    /// `address`.
    pub address: Option<IpAddr>,
    /// `port`; 0, which stands for the default as for the kubelet, is `None`.
    pub port: Option<u16>,
    /// `authentication.x509.clientCAFile`.
    pub client_ca_file: Option<PathBuf>,
    /// `tlsCertFile`.
    pub tls_cert_file: Option<PathBuf>,
    /// `tlsPrivateKeyFile`.
    pub tls_private_key_file: Option<PathBuf>,
}

/// Without the URL and the headers, which may hold secrets.
impl fmt::Debug for KubeletConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeletConfig")
            .field("static_pod_path", &self.static_pod_path)
            .field("ignored", &self.ignored)
            .finish_non_exhaustive()
    }
}

impl KubeletConfig {
    /// Reads `file`, which lies in `directory` (absolute).
    pub fn read(file: &ConfigFile<'_>, directory: &Path) -> Result<Self, ConfigErrors> {
        let mut reader = Reader { file: file.name, errors: Vec::new() };
        let config = reader.read(file.text, directory);
        ConfigErrors::check(reader.errors)?;
        Ok(config.unwrap_or_default())
    }

    /// One line for the fields that are ignored, of the file called `name`.
    pub fn note(&self, name: &str) -> Option<String> {
        let ignored = &self.ignored;
        (!ignored.is_empty()).then(|| format!("{name}: ignored, as static pods do not need it: {}", ignored.join(", ")))
    }

    /// Back-off of crashing containers: the usual one within the limit of this file. A limit below the usual first wait
    /// lowers that as well, as for the kubelet.
    pub fn apply_back_off(&self, timings: &mut Timings) {
        if let Some(longest) = self.max_container_restart_period {
            timings.crash_max = longest;
            timings.crash_initial = timings.crash_initial.min(longest);
        }
    }

    /// What is kept of logs.
    pub fn log_limits(&self) -> LogLimits {
        let default = LogLimits::default();
        let max_size = self.container_log_max_size.unwrap_or(default.max_size);
        let max_files = self.container_log_max_files.unwrap_or(default.max_files);
        LogLimits { max_size, max_files: if max_size == 0 { 0 } else { max_files } }
    }
}

struct Reader<'a> {
    file: &'a str,
    errors: Vec<ConfigError>,
}

impl Reader<'_> {
    fn error(&mut self, line: Option<u64>, field: &str, problem: Problem) {
        let place = Place::File { name: self.file.to_owned(), line };
        self.errors.push(ConfigError { place, field: field.to_owned(), problem });
    }

    fn wrong(&mut self, tree: &Tree, field: &str, problem: &str, expected: &str) {
        let value = match &tree.node {
            Node::Scalar(Value::String(text)) => text.clone(),
            Node::Scalar(value) => value.to_string(),
            Node::Sequence(_) => "[…]".to_owned(),
            Node::Mapping(_) => "{…}".to_owned(),
        };
        let problem = Problem::Invalid { value, problem: problem.to_owned(), expected: expected.to_owned() };
        self.error(Some(tree.line), field, problem);
    }

    fn read(&mut self, text: &str, directory: &Path) -> Option<KubeletConfig> {
        let documents = yaml::documents(text);
        let Some(document) = documents.first() else {
            self.error(None, "", Problem::Untyped("kind"));
            return None;
        };
        if let Some(second) = documents.get(1) {
            self.error(Some(second.line()), "", Problem::SecondDocument);
        }
        let tree = match document.tree() {
            Ok(tree) => tree,
            Err(error) => {
                self.error(error.line(), "", Problem::Syntax(error.reason().to_owned()));
                return None;
            }
        };
        let named = |key: &str| tree.get(key).and_then(Tree::as_str).unwrap_or_default().to_owned();
        let (api_version, kind) = (named("apiVersion"), named("kind"));
        if (api_version.as_str(), kind.as_str()) != KIND {
            let problem = match (api_version.is_empty(), kind.is_empty()) {
                (_, true) => Problem::Untyped("kind"),
                (true, _) => Problem::Untyped("apiVersion"),
                _ => Problem::OtherKind {
                    kind,
                    api_version,
                    expected: "`KubeletConfiguration` of `kubelet.config.k8s.io/v1beta1`",
                },
            };
            self.error(Some(document.line()), "", problem);
            return None;
        }
        Some(self.fields(&tree, directory))
    }

    fn fields(&mut self, tree: &Tree, directory: &Path) -> KubeletConfig {
        let mut config = KubeletConfig::default();
        for (field, value) in tree.entries() {
            // An empty value says nothing, as for the kubelet, which fills in its default then.
            if value.node == Node::Scalar(Value::Null) || value.as_str() == Some("") {
                if !is_known(field) {
                    self.unknown(value, field);
                }
                continue;
            }
            match field.as_str() {
                "apiVersion" | "kind" => {}
                "staticPodPath" => config.static_pod_path = self.path(value, field, directory),
                "podLogsDir" => config.pod_logs_dir = self.path(value, field, directory),
                "staticPodURL" => config.static_pod_url = self.text(value, field),
                "staticPodURLHeader" => config.static_pod_url_header = self.headers(value, field),
                "fileCheckFrequency" => config.file_check_frequency = self.frequency(value, field),
                "httpCheckFrequency" => config.http_check_frequency = self.frequency(value, field),
                "containerLogMaxSize" => config.container_log_max_size = self.size(value, field),
                "containerLogMaxFiles" => config.container_log_max_files = self.files(value, field),
                "enableServer" => config.server.enabled = self.switch(value, field),
                "address" => config.server.address = self.address(value, field),
                "port" => config.server.port = self.port(value, field),
                "tlsCertFile" => config.server.tls_cert_file = self.path(value, field, directory),
                "tlsPrivateKeyFile" => config.server.tls_private_key_file = self.path(value, field, directory),
                "authentication" => {
                    self.known(value, field);
                    let authorities = value.get("x509").and_then(|x509| x509.get("clientCAFile"));
                    if let Some(file) = authorities.filter(|file| file.as_str() != Some("")) {
                        config.server.client_ca_file = self.path(file, "authentication.x509.clientCAFile", directory);
                    }
                    // The rest is as it is: no anonymous users, and the API server is asked.
                    if value.entries().iter().any(|(name, _)| name != "x509") {
                        config.ignored.push(field.clone());
                    }
                }
                "crashLoopBackOff" => {
                    self.known(value, field);
                    if let Some(value) = value.get("maxContainerRestartPeriod") {
                        config.max_container_restart_period = self.restart_period(value);
                    }
                }
                _ if is_known(field) => {
                    self.known(value, field);
                    config.ignored.push(field.clone());
                }
                _ => self.unknown(value, field),
            }
        }
        config
    }

    /// Checks the names of the fields below a known one.
    fn known(&mut self, tree: &Tree, path: &str) {
        for (name, value) in tree.entries() {
            let below = format!("{path}.{name}");
            if is_known(&below) {
                self.known(value, &below);
            } else if KNOWN.iter().any(|known| known.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'))) {
                self.unknown(value, &below);
            }
        }
    }

    fn unknown(&mut self, tree: &Tree, path: &str) {
        let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
        let beside = |known: &&'static str| known.rsplit_once('.').unwrap_or(("", known)).0 == parent;
        let last = |known: &'static str| known.rsplit_once('.').map_or(known, |(_, name)| name);
        let names: Vec<&str> = KNOWN.iter().copied().filter(beside).map(last).collect();
        let closest = similar::get_close_matches(name, &names, 1, 0.75).first().map(|name| (*name).to_owned());
        // All of a kubelet's fields would be no help.
        let known = if parent.is_empty() { Vec::new() } else { names.into_iter().map(str::to_owned).collect() };
        self.error(Some(tree.line), path, Problem::UnknownField { closest, known });
    }

    fn text(&mut self, tree: &Tree, field: &str) -> Option<String> {
        if tree.as_str().is_none() {
            self.wrong(tree, field, "is no text", "a text");
        }
        tree.as_str().map(str::to_owned)
    }

    fn path(&mut self, tree: &Tree, field: &str, directory: &Path) -> Option<PathBuf> {
        self.text(tree, field).map(|path| directory.join(path))
    }

    fn switch(&mut self, tree: &Tree, field: &str) -> Option<bool> {
        let Node::Scalar(Value::Bool(value)) = &tree.node else {
            self.wrong(tree, field, "is neither true nor false", "`true` or `false`");
            return None;
        };
        Some(*value)
    }

    fn address(&mut self, tree: &Tree, field: &str) -> Option<IpAddr> {
        let found = tree.as_str().and_then(|text| text.parse().ok());
        if found.is_none() {
            self.wrong(tree, field, "is no address", "an IP address like `0.0.0.0`");
        }
        found
    }

    fn port(&mut self, tree: &Tree, field: &str) -> Option<u16> {
        let found = match &tree.node {
            Node::Scalar(Value::Number(number)) => number.as_u64().and_then(|port| u16::try_from(port).ok()),
            _ => None,
        };
        if found.is_none() {
            self.wrong(tree, field, "is no port", "a number from 1 to 65535");
        }
        found.filter(|port| *port != 0)
    }

    fn duration(&mut self, tree: &Tree, field: &str) -> Option<Duration> {
        let found = tree.as_str().and_then(duration::parse);
        if found.is_none() {
            self.wrong(tree, field, "is no duration", "a number with a unit, like `20s` or `1m30s`");
        }
        found
    }

    /// 0 stands for the default (kubelet: `SetDefaults_KubeletConfiguration`); kubeadm writes it.
    fn frequency(&mut self, tree: &Tree, field: &str) -> Option<Duration> {
        self.duration(tree, field).filter(|duration| !duration.is_zero())
    }

    fn restart_period(&mut self, tree: &Tree) -> Option<Duration> {
        let field = "crashLoopBackOff.maxContainerRestartPeriod";
        if tree.node == Node::Scalar(Value::Null) {
            return None;
        }
        let found = self.duration(tree, field)?;
        if !RESTART_PERIOD.contains(&found) {
            self.wrong(tree, field, "is out of range", "1s to 300s");
        }
        Some(found)
    }

    fn size(&mut self, tree: &Tree, field: &str) -> Option<u64> {
        let found = tree.as_str().and_then(quantity::bytes).filter(|size| *size != 0);
        if found.is_none() {
            self.wrong(tree, field, "is no size", "a quantity like `10Mi`, or a negative one for no rotation");
        }
        found.map(|size| u64::try_from(size).unwrap_or(0))
    }

    fn files(&mut self, tree: &Tree, field: &str) -> Option<u32> {
        let found = match &tree.node {
            Node::Scalar(Value::Number(number)) => number.as_u64().and_then(|count| u32::try_from(count).ok()),
            _ => None,
        };
        let found = found.filter(|count| *count > 1);
        if found.is_none() {
            // kubelet: `ValidateKubeletConfiguration`.
            self.wrong(tree, field, "is no number of files", "a number greater than 1");
        }
        found
    }

    fn headers(&mut self, tree: &Tree, field: &str) -> Vec<(String, String)> {
        let mut headers = Vec::new();
        let mut good = matches!(tree.node, Node::Mapping(_));
        for (name, values) in tree.entries() {
            good &= matches!(values.node, Node::Sequence(_));
            for value in values.items() {
                good &= value.as_str().is_some();
                headers.extend(value.as_str().map(|value| (name.clone(), value.to_owned())));
            }
        }
        if !good {
            let problem = Problem::Syntax("expected a list of texts for each name of a header".to_owned());
            self.error(Some(tree.line), field, problem);
        }
        headers
    }
}

fn is_known(path: &str) -> bool {
    KNOWN.contains(&path)
}

/// Every field that a kubelet 1.37 knows, from the type `KubeletConfiguration` in `k8s.io/kubelet` v0.37.1,
/// `config/v1beta1/types.go`. A field without others below it is not looked into: types of other packages (`logging`,
/// `tracing`), lists, and maps with keys of the user.
const KNOWN: &[&str] = &[
    "address",
    "allowedUnsafeSysctls",
    "apiVersion",
    "authentication",
    "authentication.anonymous",
    "authentication.anonymous.enabled",
    "authentication.webhook",
    "authentication.webhook.cacheTTL",
    "authentication.webhook.enabled",
    "authentication.x509",
    "authentication.x509.clientCAFile",
    "authorization",
    "authorization.mode",
    "authorization.webhook",
    "authorization.webhook.cacheAuthorizedTTL",
    "authorization.webhook.cacheUnauthorizedTTL",
    "cgroupDriver",
    "cgroupRoot",
    "cgroupsPerQOS",
    "clusterDNS",
    "clusterDomain",
    "configMapAndSecretChangeDetectionStrategy",
    "containerLogMaxFiles",
    "containerLogMaxSize",
    "containerLogMaxWorkers",
    "containerLogMonitorInterval",
    "containerRuntimeEndpoint",
    "contentType",
    "cpuCFSQuota",
    "cpuCFSQuotaPeriod",
    "cpuManagerPolicy",
    "cpuManagerPolicyOptions",
    "cpuManagerReconcilePeriod",
    "crashLoopBackOff",
    "crashLoopBackOff.maxContainerRestartPeriod",
    "defaultPodSysctls",
    "enableContentionProfiling",
    "enableControllerAttachDetach",
    "enableDebugFlagsHandler",
    "enableDebuggingHandlers",
    "enableProfilingHandler",
    "enableServer",
    "enableSystemLogHandler",
    "enableSystemLogQuery",
    "enforceNodeAllocatable",
    "eventBurst",
    "eventRecordQPS",
    "evictionHard",
    "evictionMaxPodGracePeriod",
    "evictionMinimumReclaim",
    "evictionPressureTransitionPeriod",
    "evictionSoft",
    "evictionSoftGracePeriod",
    "failCgroupV1",
    "failSwapOn",
    "featureGates",
    "fileCheckFrequency",
    "hairpinMode",
    "healthzBindAddress",
    "healthzPort",
    "httpCheckFrequency",
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
    "imageMaximumGCAge",
    "imageMinimumGCAge",
    "imagePullCredentialsVerificationPolicy",
    "imageServiceEndpoint",
    "iptablesDropBit",
    "iptablesMasqueradeBit",
    "kernelMemcgNotification",
    "kind",
    "kubeAPIBurst",
    "kubeAPIQPS",
    "kubeReserved",
    "kubeReservedCgroup",
    "kubeletCgroups",
    "localStorageCapacityIsolation",
    "logging",
    "makeIPTablesUtilChains",
    "maxOpenFiles",
    "maxParallelImagePulls",
    "maxPods",
    "memoryManagerPolicy",
    "memoryReservationPolicy",
    "memorySwap",
    "memorySwap.swapBehavior",
    "memoryThrottlingFactor",
    "mergeDefaultEvictionSettings",
    "nodeLeaseDurationSeconds",
    "nodeStatusMaxImages",
    "nodeStatusReportFrequency",
    "nodeStatusUpdateFrequency",
    "oomScoreAdj",
    "podCIDR",
    "podLogsDir",
    "podPidsLimit",
    "podsPerCore",
    "port",
    "preloadedImagesVerificationAllowlist",
    "protectKernelDefaults",
    "providerID",
    "qosReserved",
    "readOnlyPort",
    "registerNode",
    "registerWithTaints",
    "registryBurst",
    "registryPullQPS",
    "reservedMemory",
    "reservedSystemCPUs",
    "resolvConf",
    "rotateCertificates",
    "runOnce",
    "runtimeRequestTimeout",
    "seccompDefault",
    "serializeImagePulls",
    "serverTLSBootstrap",
    "showHiddenMetricsForVersion",
    "shutdownGracePeriod",
    "shutdownGracePeriodByPodPriority",
    "shutdownGracePeriodCriticalPods",
    "singleProcessOOMKill",
    "staticPodPath",
    "staticPodURL",
    "staticPodURLHeader",
    "streamingConnectionIdleTimeout",
    "syncFrequency",
    "systemCgroups",
    "systemReserved",
    "systemReservedCgroup",
    "tlsCertFile",
    "tlsCipherSuites",
    "tlsCurvePreferences",
    "tlsMinVersion",
    "tlsPrivateKeyFile",
    "topologyManagerPolicy",
    "topologyManagerPolicyOptions",
    "topologyManagerScope",
    "tracing",
    "userNamespaces",
    "userNamespaces.idsPerPod",
    "volumePluginDir",
    "volumeStatsAggPeriod",
];

#[cfg(test)]
mod tests;
