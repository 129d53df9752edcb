//! What the agent may do in the API server: keep its host's address in the entry of the Service `kubernetes`.

use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use kube::api::ObjectMeta;

use super::RBAC;

/// Group of `plinth-agent.conf`.
pub const AGENTS: &str = "plinth:agents";
/// Namespace of the Service `kubernetes` and of what the agent may do.
pub const NAMESPACE: &str = "default";
/// Name of the Service, of its Endpoints and of its `EndpointSlice` (kube-apiserver: `kubernetesServiceName`).
pub const SERVICE: &str = "kubernetes";

/// To read and update the two objects, and nothing else.
pub(super) fn role() -> Role {
    let rule = |group: &str, resource: &str| PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(vec![resource.to_owned()]),
        resource_names: Some(vec![SERVICE.to_owned()]),
        verbs: vec!["get".to_owned(), "update".to_owned()],
        non_resource_urls: None,
    };
    Role { metadata: metadata(), rules: Some(vec![rule("", "endpoints"), rule("discovery.k8s.io", "endpointslices")]) }
}

pub(super) fn binding() -> RoleBinding {
    RoleBinding {
        metadata: metadata(),
        role_ref: RoleRef { api_group: Some(RBAC.to_owned()), kind: "Role".to_owned(), name: AGENTS.to_owned() },
        subjects: Some(vec![Subject {
            api_group: Some(RBAC.to_owned()),
            kind: "Group".to_owned(),
            name: AGENTS.to_owned(),
            namespace: None,
        }]),
    }
}

fn metadata() -> ObjectMeta {
    ObjectMeta { name: Some(AGENTS.to_owned()), namespace: Some(NAMESPACE.to_owned()), ..ObjectMeta::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_may_do_nothing_else() {
        let metadata = serde_json::json!({ "name": "plinth:agents", "namespace": "default" });
        let rule = |group: &str, resource: &str| {
            serde_json::json!({
                "apiGroups": [group], "resources": [resource], "resourceNames": ["kubernetes"],
                "verbs": ["get", "update"],
            })
        };
        let role_expected = serde_json::json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": metadata,
            "rules": [rule("", "endpoints"), rule("discovery.k8s.io", "endpointslices")],
        });
        assert_eq!(serde_json::to_value(role()).unwrap(), role_expected);
        let group = "rbac.authorization.k8s.io";
        let expected = serde_json::json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": { "apiGroup": group, "kind": "Role", "name": "plinth:agents" },
            "subjects": [{ "apiGroup": group, "kind": "Group", "name": "plinth:agents" }],
        });
        assert_eq!(serde_json::to_value(binding()).unwrap(), expected);
    }
}
