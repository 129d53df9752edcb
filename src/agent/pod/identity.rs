//! The hash that says whether two manifests mean the same pod.

use aws_lc_rs::digest;
use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::Origin;

/// Version of the hashed form. A new one must also compute the old one for containers that carry it.
const VERSION: u32 = 1;

/// The first 32 hexadecimal digits of SHA-256 over the canonical JSON of everything that makes the pod what it is:
/// node and file or else URL, name, labels, annotations (without the kubelet's own `kubernetes.io/config.*`) and the
/// defaulted spec, whose `nodeName` is the node.
///
/// Canonical: keys sorted, no white space, no nulls, no empty lists.
pub fn hash(metadata: &ObjectMeta, spec: &PodSpec, origin: Origin<'_>) -> String {
    let (file, url) = match origin {
        Origin::File(path) => (Some(path.display().to_string()), None),
        Origin::Url(url) => (None, Some(url)),
    };
    let annotations: serde_json::Map<String, Value> = metadata
        .annotations
        .iter()
        .flatten()
        .filter(|(key, _)| !key.starts_with("kubernetes.io/config."))
        .map(|(key, value)| (key.clone(), Value::from(value.as_str())))
        .collect();
    let mut identity = json!({
        "version": VERSION,
        "node": spec.node_name,
        "file": file,
        "url": url,
        "uid": metadata.uid,
        "name": metadata.name,
        "namespace": metadata.namespace,
        "labels": metadata.labels,
        "annotations": annotations,
        "spec": spec,
    });
    prune(&mut identity);
    let mut text = String::new();
    write_canonical(&identity, &mut text);
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    hex(&digest.as_ref()[..16])
}

/// Lower-case hexadecimal digits.
pub(in crate::agent) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn prune(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.values_mut().for_each(prune);
            object.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|items| !items.is_empty()));
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(object) => {
            let mut entries: Vec<_> = object.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            text.push('{');
            for (index, (key, value)) in entries.into_iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push(':');
                write_canonical(value, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (index, value) in items.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_canonical(value, text);
            }
            text.push(']');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}
