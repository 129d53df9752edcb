//! The file format (`k8s.io/client-go/tools/clientcmd/api/v1`): the fields used here, in clientcmd's order, which is the
//! alphabet's. Others are ignored when read.
//!
//! No `Debug` on purpose: a key is among the fields.

use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Config {
    #[serde(rename = "apiVersion")]
    pub(super) api_version: String,
    pub(super) clusters: Vec<NamedCluster>,
    pub(super) contexts: Vec<NamedContext>,
    pub(super) current_context: String,
    pub(super) kind: String,
    pub(super) users: Vec<NamedUser>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct NamedCluster {
    pub(super) cluster: Cluster,
    pub(super) name: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Cluster {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) certificate_authority_data: Option<String>,
    pub(super) server: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct NamedContext {
    pub(super) context: Context,
    pub(super) name: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Context {
    pub(super) cluster: String,
    pub(super) user: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct NamedUser {
    pub(super) name: String,
    pub(super) user: User,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct User {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) client_certificate_data: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) client_key_data: Option<String>,
}
