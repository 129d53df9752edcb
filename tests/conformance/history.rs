//! What the engine says happened to containers: its own events, from the first one on.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde_json::Value;

/// Everything that happened to the agent's containers.
pub(crate) struct History {
    lives: Arc<Mutex<BTreeMap<String, Life>>>,
    _events: Child,
}

/// What one container went through. Times are the engine's, in seconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Life {
    /// Its id.
    pub(crate) id: String,
    /// Its name in the engine: `k8s_<container>_<pod>_<namespace>_<uid>_<attempt>`.
    pub(crate) name: String,
    /// Its name in its pod; `POD` for a sandbox.
    pub(crate) container: String,
    /// Name of its pod.
    pub(crate) pod: String,
    /// UID of its pod.
    pub(crate) uid: String,
    /// Its image.
    pub(crate) image: String,
    /// How often it had been started before.
    pub(crate) attempt: u32,
    /// When it was created.
    pub(crate) created: f64,
    /// When it was started.
    pub(crate) started: Option<f64>,
    /// The signals that it was sent, and when.
    pub(crate) signals: Vec<(f64, i64)>,
    /// When it ended, and with which code.
    pub(crate) died: Option<(f64, i64)>,
    /// When it was removed.
    pub(crate) removed: Option<f64>,
}

impl Life {
    /// Whether it runs.
    pub(crate) fn runs(&self) -> bool {
        self.started.is_some() && self.died.is_none()
    }

    /// When its process started.
    ///
    /// # Panics
    /// When it has not.
    #[track_caller]
    pub(crate) fn start(&self) -> f64 {
        self.started.unwrap_or_else(|| panic!("was never started: {self:?}"))
    }

    /// When its process ended.
    ///
    /// # Panics
    /// When it has not.
    #[track_caller]
    pub(crate) fn end(&self) -> f64 {
        self.died.unwrap_or_else(|| panic!("has not ended: {self:?}")).0
    }

    /// When it was first sent this signal.
    ///
    /// # Panics
    /// When it was not.
    #[track_caller]
    pub(crate) fn signalled(&self, signal: i64) -> f64 {
        let found = self.signals.iter().find(|(_, sent)| *sent == signal);
        found.unwrap_or_else(|| panic!("no signal {signal}: {self:?}")).0
    }
}

impl History {
    /// Follows the engine's events, from those of before that it still has.
    pub(crate) fn begin() -> Self {
        let mut events = Command::new("docker")
            .args(["events", "--since=1", "--filter=type=container", "--format={{json .}}"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lives = Arc::new(Mutex::new(BTreeMap::new()));
        let (output, written) = (BufReader::new(events.stdout.take().unwrap()), Arc::clone(&lives));
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let event: Value = serde_json::from_str(&line).unwrap();
                note(&mut written.lock().unwrap_or_else(PoisonError::into_inner), &event);
            }
        });
        Self { lives, _events: events }
    }

    /// Containers of the pods that are called `name` or `name-<node>`, in the order of their creation.
    pub(crate) fn of(&self, name: &str) -> Vec<Life> {
        let full = format!("{name}-{}", super::node::NAME);
        let lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<_> = lives.values().filter(|life| life.pod == full || life.pod == name).cloned().collect();
        found.sort_by(|one, other| one.created.total_cmp(&other.created));
        found
    }
}

fn note(lives: &mut BTreeMap<String, Life>, event: &Value) {
    let attributes = &event["Actor"]["Attributes"];
    let text = |name: &str| attributes[name].as_str().unwrap_or_default().to_owned();
    let action = event["Action"].as_str().unwrap_or_default();
    let (pod, id) = (text("io.kubernetes.pod.name"), event["Actor"]["ID"].as_str().unwrap_or_default());
    if pod.is_empty() || !["create", "start", "kill", "die", "destroy"].contains(&action) {
        return;
    }
    #[allow(clippy::cast_precision_loss)] // a microsecond will do
    let at = event["timeNano"].as_i64().unwrap() as f64 / 1e9;
    let life = lives.entry(id.to_owned()).or_default();
    match action {
        "create" => {
            let name = text("name");
            let attempt = name.rsplit('_').next().and_then(|attempt| attempt.parse().ok()).unwrap_or_default();
            *life = Life {
                id: id.to_owned(),
                container: text("io.kubernetes.container.name"),
                uid: text("io.kubernetes.pod.uid"),
                image: text("image"),
                created: at,
                name,
                pod,
                attempt,
                ..Life::default()
            };
        }
        "start" => life.started = Some(at),
        "kill" => life.signals.push((at, text("signal").parse().unwrap_or_default())),
        "die" => life.died = Some((at, text("exitCode").parse().unwrap_or(-1))),
        _ => life.removed = Some(at),
    }
}
