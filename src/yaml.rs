//! The only user of the YAML crate.
//!
//! Two ways of reading, because two readers have to be matched:
//!
//! - Configuration is read **strictly** ([`from_str`], [`Document::parse`]): duplicate keys are errors, and every
//!   error names its line.
//! - Manifests are read **as the kubelet reads them** ([`manifest`]): YAML 1.1 scalars, the first document only, the
//!   last of two equal keys wins.
//!
//! There is no untyped YAML value: untyped trees are [`serde_json::Value`], or a [`Tree`] where lines matter.

use std::fmt;

use serde::de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_yaml::options::DuplicateKeyPolicy;
use serde_yaml::{Options, Spanned};

/// Largest manifest that is read, in bytes (kubelet: `maxConfigLength`, 10 MiB).
pub const MAX_MANIFEST_BYTES: usize = 10 << 20;

/// Deepest nesting that is read. A Pod needs less than 20; the limit protects the stack, of which an unoptimised
/// build takes about 30 KiB per level.
const MAX_DEPTH: usize = 32;

/// Most values that are read, those behind aliases counted each time. It bounds time and memory.
const MAX_VALUES: usize = 250_000;

/// YAML that cannot be read or written. `Display` names line and column and shows the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct YamlError {
    text: String,
    reason: String,
    line: Option<u64>,
}

impl YamlError {
    fn new(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self { text: reason.clone(), reason, line: None }
    }

    /// What is wrong in one line, without the place.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Line of the place, counted from 1.
    pub fn line(&self) -> Option<u64> {
        self.line
    }
}

/// The crate speaks to programmers.
const WORDING: [(&str, &str); 4] = [
    ("expected mapping start", "expected a mapping"),
    ("expected sequence start", "expected a list"),
    ("expected string scalar", "expected a text"),
    (", set DuplicateKeyPolicy in Options if acceptable", ""),
];

/// What the crate says of a limit, and what we say.
const LIMITS: [(&str, &str); 3] = [
    ("budget breached: Depth", "nested too deeply"),
    ("recursion limit exceeded", "nested too deeply"),
    ("budget breached: Nodes", "more than 250000 values, those behind aliases counted each time"),
];

impl From<serde_yaml::Error> for YamlError {
    fn from(error: serde_yaml::Error) -> Self {
        let bare = error.without_snippet();
        let text = bare.to_string();
        // The crate appends the place to the message; whoever asks for the reason alone names the place differently.
        let reason = text.split(" at line ").next().unwrap_or(&text).lines().next().unwrap_or(&text);
        let limit = |(kind, ours): &(&str, &'static str)| reason.contains(kind).then_some(*ours);
        let reason = LIMITS.iter().find_map(limit).unwrap_or(reason);
        let reason = WORDING.iter().fold(reason.to_owned(), |reason, (theirs, ours)| reason.replace(theirs, ours));
        let line = bare.location().map(|location| location.line()).filter(|line| *line > 0);
        Self { reason, line, text: error.to_string() }
    }
}

/// Reads one document strictly: duplicate keys and trailing documents are errors.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    Ok(serde_yaml::from_str_with_options(text, options())?)
}

/// Writes one document, block style, strings quoted wherever a YAML 1.1 reader could take them for something else.
pub fn to_string<T: Serialize>(value: &T) -> Result<String, YamlError> {
    serde_yaml::to_string_with_options(value, serde_yaml::ser_options! { prefer_block_scalars: false })
        .map_err(|error| YamlError::new(error.to_string()))
}

/// Reads a manifest as the kubelet reads it (apimachinery's `ToJSON`, then a lenient typed decoder).
///
/// - Text that starts with `{` is JSON, with nothing after it; everything else is YAML.
/// - Of several documents the first counts; an empty first document is refused. Leading comments and one leading
///   `---` are no document.
/// - Scalars follow YAML 1.1: `yes` and `on` are booleans, also as keys; `0400` is octal.
/// - The last of two equal keys wins, unknown fields are dropped, a value of the wrong type is refused.
/// - A byte order mark and CRLF are accepted; more than [`MAX_MANIFEST_BYTES`] are not.
pub fn manifest<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, YamlError> {
    if bytes.len() > MAX_MANIFEST_BYTES {
        return Err(YamlError::new(format!("larger than {} MiB", MAX_MANIFEST_BYTES >> 20)));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| YamlError::new(format!("not UTF-8 from byte {} on", error.valid_up_to())))?;
    if text.trim_start().starts_with('{') {
        // By way of an untyped value, so that the last of two equal keys wins.
        let value: Value = serde_json::from_str(text).map_err(|error| YamlError::new(error.to_string()))?;
        if count(&value) > MAX_VALUES {
            return Err(YamlError::new(format!("more than {MAX_VALUES} values")));
        }
        return serde_json::from_value(value).map_err(|error| YamlError::new(error.to_string()));
    }
    let documents = split(text.strip_prefix('\u{feff}').unwrap_or(text));
    let Some(document) = documents.into_iter().next().filter(|document| !document.is_empty()) else {
        return Err(YamlError::new("the first document is empty"));
    };
    let tree: Tree = serde_yaml::from_str_with_options(&document.padded(), manifest_options())?;
    serde_json::from_value(tree.into_value()).map_err(|error| {
        // The tree knows no lines any more. Reading again straight into the type often finds the same mistake, and
        // its place.
        let mut options = manifest_options();
        options.no_schema = true;
        match serde_yaml::from_str_with_options::<T>(&document.padded(), options) {
            Err(placed) => placed.into(),
            Ok(_) => YamlError::new(error.to_string()),
        }
    })
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

fn options() -> Options {
    serde_yaml::options! {
        budget: serde_yaml::budget! { max_depth: MAX_DEPTH, flow_nesting_limit: MAX_DEPTH, max_nodes: MAX_VALUES }
    }
}

fn manifest_options() -> Options {
    let mut options = options();
    options.duplicate_keys = DuplicateKeyPolicy::LastWins;
    options.legacy_octal_numbers = true;
    options
}

/// One document of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Document<'a> {
    text: &'a str,
    /// Lines of the file before this document.
    lines_before: usize,
}

/// The documents of a configuration file, those without content left out.
pub fn documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = split(text.strip_prefix('\u{feff}').unwrap_or(text));
    documents.retain(|document| !document.is_empty());
    documents
}

impl Document<'_> {
    /// Line of the file where this document's first content stands, counted from 1.
    pub fn line(&self) -> u64 {
        let blank = self.text.lines().take_while(|line| is_blank(line)).count();
        (self.lines_before + blank + 1) as u64
    }

    /// Reads it strictly; errors name lines of the whole file.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, YamlError> {
        from_str(&self.padded())
    }

    /// Its content as it stands, with lines of the whole file.
    pub fn tree(&self) -> Result<Tree, YamlError> {
        from_str(&self.padded())
    }

    fn is_empty(&self) -> bool {
        self.text.lines().all(is_blank)
    }

    /// The document with as many empty lines before it as the file has others: line numbers and the excerpts in error
    /// messages are then the file's.
    fn padded(&self) -> String {
        let mut padded = "\n".repeat(self.lines_before);
        padded.push_str(self.text);
        padded
    }
}

/// No content: blank, a comment, a directive (`%YAML 1.1`), or a bare marker.
fn is_blank(line: &str) -> bool {
    let line = if is_marker(line, "---") { &line[3..] } else { line }.trim();
    line.is_empty() || line.starts_with(['#', '%'])
}

/// Splits at the document markers `---` and `...`, which YAML allows nowhere else at the start of a line.
/// What stands before a first `---` is a document only if it has content.
fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    // Start of the current document: offset and lines before it; none between `...` and the next content.
    let mut start = (0, 0);
    let mut marked = false;
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let begins = is_marker(line, "---");
        let ends = is_marker(line, "...");
        if begins || ends {
            let document = Document { text: &text[start.0..offset], lines_before: start.1 };
            if marked || !document.is_empty() {
                documents.push(document);
            }
            // What follows `---` on its line belongs to the document, and so the marker stays in its text.
            start = if begins { (offset, number) } else { (offset + line.len(), number + 1) };
            marked = begins;
        }
        offset += line.len();
    }
    let document = Document { text: &text[start.0..], lines_before: start.1 };
    if marked || !document.is_empty() {
        documents.push(document);
    }
    documents
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// A document as it stands: every value with its line.
#[derive(Debug, Clone, PartialEq)]
pub struct Tree {
    /// Line where it begins, counted from 1; below a mapping that of its key.
    pub line: u64,
    /// What it is.
    pub node: Node,
}

/// A value of a [`Tree`].
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// Null, a boolean, a number or a string.
    Scalar(Value),
    /// A sequence.
    Sequence(Vec<Tree>),
    /// A mapping in the file's order. Keys are text, as in JSON.
    Mapping(Vec<(String, Tree)>),
}

impl Tree {
    /// The value below `key` of a mapping.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match &self.node {
            Node::Mapping(entries) => entries.iter().rev().find(|(name, _)| name == key).map(|(_, tree)| tree),
            _ => None,
        }
    }

    /// The entries of a mapping; none of anything else.
    pub fn entries(&self) -> &[(String, Self)] {
        match &self.node {
            Node::Mapping(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a sequence; none of anything else.
    pub fn items(&self) -> &[Self] {
        match &self.node {
            Node::Sequence(items) => items,
            _ => &[],
        }
    }

    /// The text of a scalar string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.node {
            Node::Scalar(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// Line of the value at `path`, e.g. `apiServer.certSANs[1]`, or of the nearest value above it that is there.
    pub fn line_of(&self, path: &str) -> u64 {
        let mut tree = self;
        for step in path.split(['.', '[']) {
            let next = match step.strip_suffix(']') {
                Some(index) => index.parse::<usize>().ok().and_then(|index| tree.items().get(index)),
                None => tree.get(step),
            };
            match next {
                Some(next) => tree = next,
                None => break,
            }
        }
        tree.line
    }

    /// Path of the first value that begins at `line`.
    pub fn path_at(&self, line: u64) -> Option<String> {
        let below = |path: String, tree: &Self| {
            if tree.line == line {
                return Some(path);
            }
            let inner = tree.path_at(line)?;
            Some(if inner.starts_with('[') { path + &inner } else { format!("{path}.{inner}") })
        };
        match &self.node {
            Node::Mapping(entries) => entries.iter().find_map(|(key, tree)| below(key.clone(), tree)),
            Node::Sequence(items) => items.iter().enumerate().find_map(|(i, tree)| below(format!("[{i}]"), tree)),
            Node::Scalar(_) => None,
        }
    }

    fn into_value(self) -> Value {
        match self.node {
            Node::Scalar(value) => value,
            Node::Sequence(items) => Value::Array(items.into_iter().map(Self::into_value).collect()),
            Node::Mapping(entries) => {
                Value::Object(entries.into_iter().map(|(key, tree)| (key, tree.into_value())).collect())
            }
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<Node>::deserialize(deserializer)?;
        Ok(Self { line: referenced.line(), node: value })
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NodeVisitor;

        impl<'de> Visitor<'de> for NodeVisitor {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Null))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
                // As JSON writes it for Go: `1e3` is 1000, and an integer field takes it.
                #[allow(clippy::cast_possible_truncation)] // guarded: integral and exactly representable
                let integer = (value.fract() == 0.0 && value.abs() < 1e15).then_some(value as i64);
                Ok(Node::Scalar(integer.map_or_else(|| value.into(), Value::from)))
            }

            fn visit_str<E>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Scalar(value.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Node::Sequence(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some((key, value)) = map.next_entry::<Spanned<Key>, Self::Value>()? {
                    entries.push((key.value.0, Tree { line: key.referenced.line(), node: value }));
                }
                Ok(Node::Mapping(entries))
            }
        }

        deserializer.deserialize_any(NodeVisitor)
    }
}

/// A mapping key as text, as YAML is turned into JSON before Kubernetes decodes it: `n:` is `"false"`, `1:` is `"1"`.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Node::deserialize(deserializer)? {
            Node::Scalar(Value::String(text)) => Ok(Self(text)),
            Node::Scalar(value @ (Value::Bool(_) | Value::Number(_))) => Ok(Self(value.to_string())),
            _ => Err(D::Error::custom("a key must be a string, a number or a boolean")),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn strings_that_look_like_yaml_1_1_scalars_are_quoted() {
        for text in ["yes", "on", "n", "0755", "1:20", "2024-01-01", "null", "~", "1e3"] {
            let yaml = to_string(&json!({ "a": text })).unwrap();
            assert!(yaml.contains('"') || yaml.contains('\''), "{yaml}");
            assert_eq!(from_str::<Value>(&yaml).unwrap()["a"], text);
        }
    }

    #[test]
    fn a_duplicate_key_is_an_error_with_its_place() {
        let error = from_str::<Value>("a: 1\nb: 2\na: 3\n").unwrap_err();
        assert!(error.to_string().contains("line 3"), "{error}");
        assert_eq!(error.line(), Some(3));
    }

    /// Each row: a manifest and what a kubelet 1.37.1 makes of it; `None` where it refuses the file.
    #[test]
    fn manifests_are_read_as_the_kubelet_reads_them() {
        let rows: &[(&str, &str, Option<Value>)] = &[
            ("booleans of YAML 1.1", "a: yes\nb: off\nc: 'yes'\n", Some(json!({"a": true, "b": false, "c": "yes"}))),
            ("legacy octal", "mode: 0400\nzero: 0\n", Some(json!({"mode": 256, "zero": 0}))),
            (
                "numbers of YAML 1.1",
                "a: 1_000\nb: 0o17\nc: 1e3\nd: .5\ne: +5\nf: 0x1F\ng: 0b11\nh: -0400\ni: 1:20\n",
                Some(json!({"a": 1000, "b": 15, "c": 1000, "d": 0.5, "e": 5, "f": 31, "g": 3, "h": -256, "i": "1:20"})),
            ),
            ("tags", "a: !!str 5\nb: !!binary aGk=\nc: !foo x\n", Some(json!({"a": "5", "b": "hi", "c": "x"}))),
            ("a null key", "null: a\n", None),
            ("quoted octal is text", "mode: '0400'\n", Some(json!({"mode": "0400"}))),
            ("boolean and number keys", "n: a\n1: b\n", Some(json!({"false": "a", "1": "b"}))),
            ("null forms", "a: ~\nb:\nc: null\n", Some(json!({"a": null, "b": null, "c": null}))),
            (
                "anchors and merge keys",
                "x: &x {p: 1}\nz:\n  <<: *x\n  q: 2\n",
                Some(json!({"x": {"p": 1}, "z": {"p": 1, "q": 2}})),
            ),
            ("duplicate keys: last wins", "a: 1\na: 2\n", Some(json!({"a": 2}))),
            ("dates stay text", "a: 2024-01-01\n", Some(json!({"a": "2024-01-01"}))),
            ("first document only", "a: 1\n---\nb: 2\n", Some(json!({"a": 1}))),
            ("what follows may be broken", "a: 1\n---\n{{{\n", Some(json!({"a": 1}))),
            ("leading marker and comments", "# c\n\n---\n# d\na: 1\n", Some(json!({"a": 1}))),
            ("content beside the marker", "--- {a: 1}\n", Some(json!({"a": 1}))),
            ("end marker", "a: 1\n...\nb: 2\n", Some(json!({"a": 1}))),
            ("marker in a block scalar is indented", "a: |\n  ---\n  x\n", Some(json!({"a": "---\nx\n"}))),
            ("dashes that are no marker", "a: 1\n---b: 2\n", Some(json!({"a": 1, "---b": 2}))),
            ("empty first document", "---\n# c\n---\na: 1\n", None),
            ("empty file", "", None),
            ("only comments", "# a\n", None),
            ("byte order mark", "\u{feff}a: 1\n", Some(json!({"a": 1}))),
            ("CRLF", "a: 1\r\nb:\r\n  - x\r\n---\r\nc: 1\r\n", Some(json!({"a": 1, "b": ["x"]}))),
            ("JSON", "  {\"a\": 1}\n", Some(json!({"a": 1}))),
            ("JSON, duplicate keys", "{\"a\": 1, \"a\": 2}", Some(json!({"a": 2}))),
            ("JSON with trailing data", "{\"a\": 1}\n---\n{\"b\": 1}", None),
            ("flow YAML at the top is taken for JSON", "{a: 1}", None),
            ("tabs", "a:\n\t- 1\n", None),
        ];
        for (name, text, expected) in rows {
            let read = manifest::<Value>(text.as_bytes());
            assert_eq!(read.as_ref().ok(), expected.as_ref(), "{name}: {read:?}");
        }
    }

    #[test]
    fn pods_are_read_leniently_but_not_with_wrong_types() {
        let pod: Pod = manifest(
            b"apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {n: x}}\nspec:\n  hostNetwork: yes\n  future: 1\n  \
              volumes: [{name: c, configMap: {defaultMode: 0400}}]\n  containers: [{name: c}]\n",
        )
        .unwrap();
        let spec = pod.spec.unwrap();
        assert_eq!(spec.host_network, Some(true));
        assert_eq!(spec.volumes.unwrap()[0].config_map.as_ref().unwrap().default_mode, Some(256));
        assert_eq!(pod.metadata.labels.unwrap()["false"], "x");

        let container = |field: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  containers:\n  - name: c\n    {field}\n"
            )
        };
        for field in ["env: [{name: A, value: 5}]", "env: [{name: A, value: on}]", "ports: [{containerPort: '80'}]"] {
            assert!(manifest::<Pod>(container(field).as_bytes()).is_err(), "{field}");
        }
        let error = manifest::<Pod>(container("env: [{name: A, value: 5}]").as_bytes()).unwrap_err();
        assert_eq!(error.line(), Some(7), "{error}");
        assert!(manifest::<Pod>(b"").unwrap_err().to_string().contains("empty"));
    }

    #[test]
    fn a_manifest_has_limits() {
        assert!(manifest::<Value>(&vec![b'#'; MAX_MANIFEST_BYTES + 1]).is_err());
        assert!(manifest::<Value>("[".repeat(100_000).as_bytes()).is_err());
        assert!(manifest::<Value>("{\"a\":".repeat(100_000).as_bytes()).is_err());
        for bytes in ["- ".repeat(100_000), "[".repeat(40) + &"]".repeat(40)] {
            assert!(manifest::<Value>(bytes.as_bytes()).is_err());
            assert!(from_str::<Tree>(&bytes).is_err());
        }
        assert!(manifest::<Value>(b"a: \xff").is_err());
    }

    #[test]
    fn documents_keep_the_lines_of_the_file() {
        let text = "# head\n---\na: 1\n\n---\n# nothing\n---\n\nb:\n  c: 2\n  d: [x,\n    y]\n...\n";
        let documents = documents(text);
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].tree().unwrap().line_of("a"), 3);
        let tree = documents[1].tree().unwrap();
        assert_eq!(documents[1].line(), 9);
        for (path, line) in [("b.c", 10), ("b.d[0]", 11), ("b.d[1]", 12), ("b.d[7]", 11), ("b.nothing.here", 9)] {
            assert_eq!(tree.line_of(path), line, "{path}");
        }
        assert_eq!(tree.path_at(10).as_deref(), Some("b.c"));
        assert_eq!(tree.path_at(12).as_deref(), Some("b.d[1]"));
        assert_eq!(tree.path_at(1), None);
        let error = documents[1].parse::<std::collections::BTreeMap<String, String>>().unwrap_err();
        assert!(error.line().is_some_and(|line| line >= 9), "{error}");
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = manifest::<Pod>(&bytes);
            let _ = manifest::<Value>(&bytes);
        }

        #[test]
        fn reading_yaml_like_text_never_panics(text in "([-:#&*!|>'\"%@`{}\\[\\], \t\r\na-c0-2~<.]|---\n|\\.\\.\\.\n){0,60}") {
            let _ = manifest::<Value>(text.as_bytes());
            for document in documents(&text) {
                let _ = document.tree().map(|tree| tree.line_of("a.b[0]"));
            }
        }

        #[test]
        fn what_is_written_is_read_back_by_both_readers(text in "\\PC{0,30}") {
            let value = json!({ "k": text });
            let yaml = to_string(&value).unwrap();
            prop_assert_eq!(&from_str::<Value>(&yaml).unwrap(), &value);
            prop_assert_eq!(&manifest::<Value>(yaml.as_bytes()).unwrap(), &value);
        }
    }
}
