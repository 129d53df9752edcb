//! The reader against everything: whatever the bytes, it ends soon with a pod that can be translated, or with a reason
//! of one line.
//!
//! Inputs that once did harm, or that are the known ways of doing it, are in `tests/fixtures/manifests`; their names
//! say what is wrong with them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;

use super::*;
use crate::agent::projection;
use crate::agent::translate::tests::{bare, node};
use crate::agent::translate::{self, Context};

/// Ample for an unoptimised build on a busy machine; a loop that does not end is longer.
const SOON: Duration = Duration::from_secs(30);
/// A reason is for people.
const SHORT: usize = 2000;

const FILE: Origin<'_> = Origin::Url("http://host/pods");

/// Manifests to begin with: what `kubeadm` writes, and one with a bit of everything.
const SEEDS: [&str; 2] = [
    include_str!("../../../tests/fixtures/manifests/good-control-plane.yaml"),
    include_str!("../../../tests/fixtures/manifests/good-everything.yaml"),
];

/// Values that somebody's parser took for something else.
const ODD: [&str; 40] = [
    "~",
    "null",
    "yes",
    "no",
    "on",
    "0",
    "-1",
    "1",
    "0400",
    "0o17",
    "0x1F",
    "1e3",
    "1e400",
    "-1e400",
    ".inf",
    ".nan",
    "2147483647",
    "-2147483648",
    "2147483648",
    "9223372036854775807",
    "18446744073709551616",
    "1:20",
    "2024-01-01",
    "''",
    "\"\\0\"",
    "'a b'",
    "\"a\\nb\"",
    "/",
    "../..",
    "..",
    "$(A)$(A)",
    "$(",
    "1Ki",
    "1e99",
    "{}",
    "[]",
    "[[[]]]",
    "*a",
    "&a [*a]",
    "!!binary aGk=",
];

/// Everything that is computed from a pod before anything is done with it.
fn compute(pod: &StaticPod) {
    let (node, empty) = (node(true), BTreeMap::new());
    let sandbox = pod.needs_sandbox().then_some("id");
    let context = Context { sandbox, image_user: Some("65534"), ..bare(&node, &empty) };
    let _ = translate::sandbox(pod, "pause", 0, &context);
    for container in pod.all_containers() {
        let _ = translate::sub_paths(pod, container, &context);
        let _ = translate::container(pod, container, 1, &context);
        let _ = projection::files(pod, container, &context);
    }
    let _ = (pod.grace(), pod.start_up_budget(), translate::qos_class(pod), resolve_order([pod]));
}

/// The pod as its author could have written it with all defaults spelled out.
fn normalised(pod: &StaticPod) -> Value {
    let mut object = pod.to_pod();
    let metadata = &mut object.metadata;
    metadata.name = pod.key.name.strip_suffix("-n").map(str::to_owned);
    metadata.uid = metadata.uid.take().filter(|uid| *uid != pod.hash);
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|name, _| !name.starts_with("kubernetes.io/config."));
    }
    let mut value = serde_json::to_value(object).unwrap();
    value["apiVersion"] = "v1".into();
    value
}

fn is_short_line(text: &str) -> bool {
    !text.is_empty() && text.len() <= SHORT && text.lines().count() == 1 && !text.contains(char::is_control)
}

/// Reads `text` as whatever source would; panics where a promise is broken.
fn examine(text: &str) -> Result<Vec<StaticPod>, PodError> {
    let began = Instant::now();
    let result = StaticPod::read_all(text, FILE, "N");
    match &result {
        Ok(pods) => {
            for pod in pods {
                assert!(pod.warnings.iter().all(|warning| is_short_line(warning)), "{:?}", pod.warnings);
                compute(pod);
                let value = normalised(pod);
                for again in [value.to_string(), yaml::to_string(&value).unwrap(), pod.manifest.clone()] {
                    // Depth and size that are just good enough for JSON may be too much for YAML.
                    match StaticPod::read(&again, FILE, "N") {
                        Ok(again) => assert_eq!((&again.uid, &again.hash), (&pod.uid, &pod.hash), "{}", again.manifest),
                        Err(error) => panic!("{error}: {again}"),
                    }
                }
            }
        }
        Err(error) => assert!(is_short_line(&error.to_string()), "{error:?}"),
    }
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    result
}

fn fixtures() -> Vec<(String, Vec<u8>)> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/manifests");
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    files.iter().map(|path| (name(path), fs::read(path).unwrap())).collect()
}

#[test]
fn files_kept_as_good_are_read_and_those_kept_as_bad_are_refused() {
    let (mut good, mut bad) = (0, 0);
    for (name, bytes) in fixtures() {
        if name == "README.md" {
            continue;
        }
        let result = match std::str::from_utf8(&bytes) {
            Ok(text) => examine(text),
            Err(error) => Err(PodError::Parse(error.to_string())),
        };
        if name.starts_with("good-") {
            good += 1;
            assert_eq!(result.as_ref().map(Vec::len), Ok(1), "{name}: {result:?}");
        } else {
            bad += 1;
            assert!(result.is_err(), "{name}");
        }
    }
    assert!(good >= 2 && bad >= 5, "the files are there");
}

#[test]
fn small_texts_that_grow_are_given_up_soon() {
    let pod = |spec: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n{spec}");
    let laughs = |quote: &str| {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 9].join(", ");
            text += &format!("a{level}: &a{level} {quote}[{aliases}]\n");
        }
        text
    };
    let merges = (1..2000).fold(String::from("m0: &m0 {k0: v}\n"), |text, level| {
        text + &format!("m{level}: &m{level}\n  <<: *m{}\n  k{level}: v\n", level - 1)
    });
    let env = (1..60).fold(String::from("    - {name: A0, value: xxxxxxxxxx}\n"), |text, level| {
        let below = format!("$(A{})", level - 1).repeat(10);
        text + &format!("    - {{name: A{level}, value: {below}}}\n")
    });
    let flat = |item: &str, count: usize| vec![item; count].join(",");
    let texts = [
        laughs(""),
        laughs("!!seq "),
        merges,
        pod(&format!("  containers:\n  - name: c\n    image: i\n    args: ['$(A59)']\n    env:\n{env}")),
        "[".repeat(1 << 20),
        "{".repeat(1 << 20),
        "{\"a\":".repeat(1 << 20),
        "- ".repeat(1 << 20),
        "? ".repeat(1 << 20),
        "a: ".repeat(1 << 20),
        "!a ".repeat(1 << 20),
        "&a ".repeat(1 << 20),
        "---\n".repeat(1 << 20),
        "#\n".repeat(1 << 20),
        " ".repeat(1 << 20),
        "%A\n".repeat(1 << 18),
        "a".repeat(1 << 20),
        format!("{}: 1\n", "k".repeat(1 << 20)),
        format!("apiVersion: v1\nkind: {}\n", "K".repeat(1 << 20)),
        format!("{{\"{}\": 1}}", "k".repeat(1 << 20)),
        format!("'{}", "x".repeat(1 << 20)),
        format!("\"{}\"", "\\n".repeat(1 << 19)),
        format!("a: |\n{}", "  \n".repeat(1 << 19)),
        format!("a: >\n{}", "  x\n".repeat(1 << 18)),
        format!("{{\"kind\":\"Pod\",\"x\":[{}]}}", flat("0", 3 << 20)),
        format!("{{\"kind\":\"Pod\",\"x\":[{}]}}", flat("{}", 1 << 20)),
        format!("[{}]", flat("a", 1 << 20)),
        format!("{{a: [{}]}}", flat("&a x", 1 << 18)),
        pod(&format!("  volumes: [{}]\n  containers: [{{name: c, image: i}}]\n", flat("{name: v}", 3_000))),
        pod(&format!("  containers: [{}]\n", flat("{name: c}", 3_000))),
        pod(&format!(
            "  containers: [{{name: c, image: i, volumeMounts: [{}]}}]\n  volumes: [{}]\n",
            flat("{name: v, mountPath: /a}", 2_000),
            flat("{name: w}", 2_000)
        )),
    ];
    for text in texts {
        let start: String = text.chars().take(40).collect();
        let began = Instant::now();
        let result = examine(&text);
        assert!(began.elapsed() < SOON, "{start}: {:?}", began.elapsed());
        assert!(result.is_err() || start.starts_with("apiVersion: v1\nkind: Pod"), "{start}");
    }
}

/// Every value of `tree` in turn, replaced by `with`.
fn each_replaced(tree: &Value, with: &Value) -> Vec<Value> {
    fn places(tree: &Value, at: &str, found: &mut Vec<String>) {
        let mut below = |key: &str, value: &Value| {
            let at = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
            found.push(at.clone());
            places(value, &at, found);
        };
        match tree {
            Value::Object(fields) => fields.iter().for_each(|(key, value)| below(key, value)),
            Value::Array(items) => items.iter().enumerate().for_each(|(index, value)| below(&index.to_string(), value)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    places(tree, "", &mut found);
    let replaced = |place: &String| {
        let mut tree = tree.clone();
        *tree.pointer_mut(place)? = with.clone();
        Some(tree)
    };
    found.iter().filter_map(replaced).collect()
}

#[test]
fn each_value_may_be_at_its_limits() {
    let limits =
        [json!(i32::MAX), json!(i32::MIN), json!(i64::MAX), json!(i64::MIN), json!(""), json!("$(A)"), json!([])];
    let mut accepted = 0;
    for seed in SEEDS {
        let tree: Value = yaml::manifest(seed.as_bytes()).unwrap();
        for limit in &limits {
            accepted += each_replaced(&tree, limit).iter().filter(|tree| examine(&tree.to_string()).is_ok()).count();
        }
        let mut all = tree;
        for container in all["spec"]["containers"].as_array_mut().unwrap() {
            for probe in ["livenessProbe", "startupProbe"] {
                for field in ["initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold"] {
                    container[probe][field] = json!(i32::MAX);
                }
            }
        }
        assert!(examine(&all.to_string()).is_ok(), "{:?}", examine(&all.to_string()));
    }
    assert!(accepted > 100, "most of the rules are behind the parser: {accepted}");
}

/// A change to a text.
#[derive(Debug, Clone)]
enum Change {
    Byte(Index, u8),
    Insert(Index, &'static str),
    Delete(Index, u8),
    Truncate(Index),
    DuplicateLine(Index, Index),
    DeleteLine(Index),
    Indent(Index, u8),
    Value(Index, Index),
    Nest(Index, u8),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    let piece = proptest::sample::select(
        &[
            "\n",
            "\t",
            ": ",
            "- ",
            "\n---\n",
            "\n...\n",
            "{",
            "}",
            "[",
            "]",
            "'",
            "\"",
            "|",
            ">",
            "#",
            "&a ",
            "*a",
            "<<: ",
            "!!str ",
            "? ",
            "\r\n",
            "\u{feff}",
            "\u{0}",
            "\u{85}",
            "\u{2028}",
            "\u{10ffff}",
            "%YAML 1.1\n",
            "\\u0000",
        ][..],
    );
    prop_oneof![
        2 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        3 => (at(), piece).prop_map(|(at, text)| Change::Insert(at, text)),
        2 => (at(), any::<u8>()).prop_map(|(at, count)| Change::Delete(at, count)),
        1 => at().prop_map(Change::Truncate),
        2 => (at(), at()).prop_map(|(from, to)| Change::DuplicateLine(from, to)),
        2 => at().prop_map(Change::DeleteLine),
        1 => (at(), 0..8_u8).prop_map(|(at, by)| Change::Indent(at, by)),
        6 => (at(), at()).prop_map(|(at, odd)| Change::Value(at, odd)),
        1 => (at(), any::<u8>()).prop_map(|(at, depth)| Change::Nest(at, depth)),
    ]
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        if bytes.is_empty() {
            break;
        }
        let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        let count = lines.len();
        let of_line = |lines: &mut Vec<Vec<u8>>, at: &Index, text: &str| {
            let line = &mut lines[at.index(count)];
            let end = line.iter().position(|byte| *byte == b':').map_or(line.len(), |colon| colon + 1);
            line.truncate(end);
            line.extend(format!(" {text}\n").bytes());
        };
        match change {
            Change::Byte(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
                continue;
            }
            Change::Insert(at, text) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, text.bytes());
                continue;
            }
            Change::Delete(at, count) => {
                let at = at.index(bytes.len());
                bytes.drain(at..bytes.len().min(at + usize::from(*count)));
                continue;
            }
            Change::Truncate(at) => {
                bytes.truncate(at.index(bytes.len()));
                continue;
            }
            Change::DuplicateLine(from, to) => {
                let line = lines[from.index(count)].clone();
                lines.insert(to.index(count), line);
            }
            Change::DeleteLine(at) => drop(lines.remove(at.index(count))),
            Change::Indent(at, by) => {
                let line = &mut lines[at.index(count)];
                line.splice(0..0, vec![b' '; usize::from(*by)]);
            }
            Change::Value(at, odd) => of_line(&mut lines, at, ODD[odd.index(ODD.len())]),
            Change::Nest(at, depth) => {
                let depth = usize::from(*depth);
                of_line(&mut lines, at, &format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
            }
        }
        bytes = lines.concat();
    }
    bytes
}

/// A change to the object behind the text, so that more of what comes after parsing is reached.
fn odd_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        proptest::sample::select(&ODD[..]).prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
        "[a-z0-9./$()-]{0,12}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        any::<i32>().prop_map(|number| json!([number, {"name": "c"}])),
    ]
}

/// Replaces one of the values below `tree`, or repeats an item.
fn replace(tree: &mut Value, way: &[Index], with: &Value) {
    let Some((first, rest)) = way.split_first() else { return with.clone_into(tree) };
    match tree {
        Value::Object(fields) if !fields.is_empty() => {
            let at = first.index(fields.len());
            if let Some((_, value)) = fields.iter_mut().nth(at) {
                replace(value, rest, with);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let at = first.index(items.len());
            if rest.len() == 1 {
                items.push(items[at].clone());
            }
            replace(&mut items[at], rest, with);
        }
        other => with.clone_into(other),
    }
}

proptest! {
    #[test]
    fn bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..2000)) {
        let _ = examine(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn what_looks_like_yaml_is_read_or_refused(
        lines in vec("( {0,8})(- |\\? )?([a-c]|kind|spec|metadata|name|containers|'[a ]*'|<<)?(: ?)?(&a|\\*a|!!?[a-z]*|[|>][+-]?[0-9]?|\\[|\\{|\\}|\\]|~|[0-9.e+:_-]{1,6}|yes|Pod|v1|---|\\.\\.\\.|#|\"|')?", 0..30),
    ) {
        let _ = examine(&lines.join("\n"));
        let _ = examine(&format!("apiVersion: v1\nkind: Pod\n{}", lines.join("\n")));
    }

    #[test]
    fn changed_manifests_are_read_or_refused(
        seed in any::<Index>(),
        changes in vec(change(), 1..8),
        windows in any::<bool>(),
    ) {
        let text = SEEDS[seed.index(SEEDS.len())];
        let text = if windows { text.replace('\n', "\r\n") } else { text.to_owned() };
        let _ = examine(&String::from_utf8_lossy(&changed(text.into_bytes(), &changes)));
    }

    #[test]
    fn odd_values_are_read_or_refused(
        seed in any::<Index>(),
        changes in vec((vec(any::<Index>(), 1..9), odd_value()), 1..5),
        listed in any::<bool>(),
    ) {
        let mut tree: Value = yaml::manifest(SEEDS[seed.index(SEEDS.len())].as_bytes()).unwrap();
        for (way, with) in &changes {
            replace(&mut tree, way, with);
        }
        if listed {
            tree = json!({"kind": "PodList", "apiVersion": "v1", "items": [tree]});
        }
        let _ = examine(&tree.to_string());
    }
}
