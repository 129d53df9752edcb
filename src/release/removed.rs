//! What a minor release no longer knows: flags and feature gates with which its components refuse to start.
//!
//! Verified, not collected: every flag that the sources or `--help` of the release before name was given to the real
//! program of both releases (1.36.3 and 1.37.1, etcd 3.6.8 and 3.7.0), hidden and deprecated ones included; every
//! feature gate likewise. Between 1.35.4 and 1.36.3 the sources and the change log were compared, and the gates given
//! to 1.36.3.

use super::Component;

/// Flags, without dashes, that `component` of Kubernetes 1.`minor` refuses although that of the minor before took them.
/// Empty also where nothing is known of that minor.
pub fn removed_flags(component: Component, minor: u64) -> &'static [&'static str] {
    match (component, minor) {
        // CHANGELOG-1.37: "Removed the `--concurrent-service-syncs` kube-controller-manager flag (no-op since v1.31)".
        (Component::KubeControllerManager, 37) => &["concurrent-service-syncs"],
        (Component::Etcd, 37) => ETCD_3_7,
        _ => &[],
    }
}

/// Feature gates that kube-apiserver, kube-controller-manager and kube-scheduler of Kubernetes 1.`minor` refuse
/// ("unrecognized feature gate") although those of the minor before took them. The three share one list.
pub fn removed_feature_gates(minor: u64) -> &'static [&'static str] {
    match minor {
        36 => GATES_1_36,
        37 => GATES_1_37,
        _ => &[],
    }
}

/// The flags of etcd 3.6 that 3.7 does not have. Most `experimental-` ones live on without that prefix, or as a feature
/// gate (etcd, `CHANGELOG-3.6.md`); discovery is only left in its second version, `discovery-token` and so on.
const ETCD_3_7: &[&str] = &[
    "discovery",
    "discovery-proxy",
    "experimental-bootstrap-defrag-threshold-megabytes",
    "experimental-compact-hash-check-enabled",
    "experimental-compact-hash-check-time",
    "experimental-compaction-batch-limit",
    "experimental-compaction-sleep-interval",
    "experimental-corrupt-check-time",
    "experimental-distributed-tracing-address",
    "experimental-distributed-tracing-instance-id",
    "experimental-distributed-tracing-sampling-rate",
    "experimental-distributed-tracing-service-name",
    "experimental-downgrade-check-time",
    "experimental-enable-distributed-tracing",
    "experimental-enable-lease-checkpoint",
    "experimental-enable-lease-checkpoint-persist",
    "experimental-initial-corrupt-check",
    "experimental-memory-mlock",
    "experimental-peer-skip-client-san-verification",
    "experimental-snapshot-catchup-entries",
    "experimental-stop-grpc-service-on-defrag",
    "experimental-txn-mode-write-with-shared-buffer",
    "experimental-warning-apply-duration",
    "experimental-warning-unary-request-duration",
    "experimental-watch-progress-notify-interval",
];

const GATES_1_36: &[&str] = &[
    "CSIMigrationPortworx",
    "HonorPVReclaimPolicy",
    "InPlacePodVerticalScalingAllocatedStatus",
    "InTreePluginPortworxUnregister",
    "MemoryManager",
    "ServiceTrafficDistribution",
    "StructuredAuthorizationConfiguration",
    "TopologyAwareHints",
    "WatchFromStorageWithoutResourceVersion",
];

const GATES_1_37: &[&str] = &[
    "APIServerTracing",
    "AnonymousAuthConfigurableEndpoints",
    "AnyVolumeDataSource",
    "AuthorizeNodeWithSelectors",
    "AuthorizeWithSelectors",
    "BtreeWatchCache",
    "ConsistentListFromCache",
    "GangScheduling",
    "JobBackoffLimitPerIndex",
    "JobPodReplacementPolicy",
    "JobSuccessPolicy",
    "LogarithmicScaleDown",
    "OrderedNamespaceDeletion",
    "PodLifecycleSleepAction",
    "PodLifecycleSleepActionAllowZero",
    "PreventStaticPodAPIReferences",
    "RelaxedDNSSearchValidation",
    "ResilientWatchCacheInitialization",
    "RetryGenerateName",
    "SchedulerQueueingHints",
    "SidecarContainers",
    "StreamingCollectionEncodingToJSON",
    "StreamingCollectionEncodingToProtobuf",
    "StructuredAuthenticationConfiguration",
    "WorkloadAwarePreemption",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_named_by_the_release_that_dropped_it() {
        for (component, minor, flag, removed) in [
            (Component::KubeControllerManager, 37, "concurrent-service-syncs", true),
            (Component::KubeControllerManager, 36, "concurrent-service-syncs", false),
            (Component::KubeApiserver, 37, "concurrent-service-syncs", false),
            (Component::Etcd, 37, "experimental-initial-corrupt-check", true),
            (Component::Etcd, 37, "snapshot-count", false),
            (Component::Etcd, 36, "discovery", false),
        ] {
            assert_eq!(removed_flags(component, minor).contains(&flag), removed, "{component} 1.{minor} {flag}");
        }
    }

    #[test]
    fn a_gate_is_dropped_once() {
        assert!(removed_feature_gates(37).contains(&"SidecarContainers"));
        assert!(!removed_feature_gates(36).iter().any(|gate| removed_feature_gates(37).contains(gate)));
        assert!(removed_feature_gates(38).is_empty());
    }
}
