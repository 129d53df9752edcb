//! Docker, through its HTTP interface.
//!
//! Every request is bounded in time, so that an engine that hangs looks like one that is not there. A request whose
//! time was over may still take effect: look at what is there before doing it again.

mod credentials;
mod failure;
mod session;
mod translate;

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error;
use bollard::exec::{CreateExecOptions, StartExecResults};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, EventsOptionsBuilder, ListContainersOptionsBuilder,
    LogsOptionsBuilder, RemoveContainerOptionsBuilder, ResizeExecOptionsBuilder, StopContainerOptionsBuilder,
    WaitContainerOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, ClientVersion};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use reqwest::header::HeaderValue;
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};

use self::failure::Failure;
use super::{
    Below, Container, ContainerSpec, Event, ExecOutput, ExecSpec, Image, LogQuery, PullProgress, Result, Runtime,
    RuntimeError, RuntimeInfo, Session, labels,
};
use crate::clock::Clock;

/// Where Docker listens unless `DOCKER_HOST` says otherwise.
pub const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// Bound of requests that only look. They take milliseconds; on a disk that is busy, seconds.
const LOOK: Duration = Duration::from_secs(10);
/// Bound of requests that change something (kubelet: `runtimeRequestTimeout`, 2 minutes).
const CHANGE: Duration = Duration::from_mins(2);
/// A pull without any progress for this long has failed (dockershim: `--image-pull-progress-deadline`, 1 minute).
const PULL_PROGRESS: Duration = Duration::from_mins(1);
/// After SIGKILL a process is gone at once, unless it hangs in the kernel.
const KILL: Duration = Duration::from_secs(10);
/// Bound given to the HTTP client where the bounds above apply; it counts whole seconds up to the response's head.
const UNBOUNDED: Duration = Duration::from_hours(24);
/// How often to look again where the engine offers nothing to wait for.
const POLL: Duration = Duration::from_millis(20);
/// Containers inspected at the same time by one `list`.
const INSPECTIONS: usize = 16;
/// Mounts below a read-only mount are read-only by default from here on.
const RECURSIVE_READ_ONLY: ClientVersion = ClientVersion { major_version: 1, minor_version: 44 };

/// A Docker Engine. Cheap to clone; clones share what was learnt about the engine.
#[derive(Debug, Clone)]
pub struct Docker {
    host: Arc<str>,
    client: Arc<OnceCell<bollard::Docker>>,
    credentials: Arc<[PathBuf]>,
}

impl Docker {
    /// Names the engine at `host`: `unix:///path` or `tcp://address:port` without TLS, as in `DOCKER_HOST`;
    /// [`DEFAULT_HOST`] when `None` or empty. Does not contact it: an engine that is not there yet may come.
    ///
    /// # Errors
    /// [`RuntimeError::Refused`] when the address is of another kind.
    pub fn connect(host: Option<&str>) -> Result<Self> {
        let host = host.filter(|host| !host.is_empty()).unwrap_or(DEFAULT_HOST);
        let known = ["unix:///", "tcp://", "http://"].iter().any(|scheme| host.starts_with(scheme));
        if !known {
            return Err(RuntimeError::Refused {
                operation: format!("use the container runtime at `{host}`"),
                reason: "only unix:// and tcp:// addresses are supported".to_owned(),
            });
        }
        Ok(Self { host: host.into(), client: Arc::default(), credentials: Arc::default() })
    }

    /// Pulls with the credentials in these files (Docker's `config.json`), the first that has some for a registry.
    /// They are read at each pull and need not exist.
    #[must_use]
    pub fn with_credentials(self, files: Vec<PathBuf>) -> Self {
        Self { credentials: files.into(), ..self }
    }

    /// The address it was given.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The client, with a version of the interface that both sides speak.
    async fn client(&self) -> Result<&bollard::Docker> {
        let connect = async {
            let seconds = UNBOUNDED.as_secs();
            let client = if self.host.starts_with("unix://") {
                bollard::Docker::connect_with_unix(&self.host, seconds, API_DEFAULT_VERSION)
            } else {
                bollard::Docker::connect_with_http(&self.host, seconds, API_DEFAULT_VERSION)
            };
            let client = client.map_err(|error| Failure::new(&self.host, &error))?;
            let client = client.with_request_modifier(url_safe_credentials);
            self.within(LOOK, client.negotiate_version()).await
        };
        let not_an_engine = |failure: Failure| match failure {
            Failure::Silent(words) => RuntimeError::Unreachable(words),
            other => RuntimeError::Unreachable(format!("{}: not a Docker Engine: {}", self.host, other.words())),
        };
        self.client.get_or_try_init(|| async { connect.await.map_err(not_an_engine) }).await
    }

    /// Bounds a request and sorts its errors.
    async fn within<T>(
        &self,
        limit: Duration,
        request: impl Future<Output = std::result::Result<T, Error>>,
    ) -> std::result::Result<T, Failure> {
        match timeout(limit, request).await {
            Ok(answer) => answer.map_err(|error| Failure::new(&self.host, &error)),
            Err(_) => Err(Failure::late(&self.host, limit)),
        }
    }

    /// Prepares a command in a container; its id.
    async fn create_exec(&self, id: &str, spec: &ExecSpec) -> Result<String> {
        let client = self.client().await?;
        let options = CreateExecOptions {
            cmd: Some(spec.command.clone()),
            attach_stdin: Some(spec.stdin),
            attach_stdout: Some(spec.stdout),
            attach_stderr: Some(spec.stderr),
            tty: Some(spec.tty),
            ..CreateExecOptions::default()
        };
        match self.within(LOOK, client.create_exec(id, options)).await {
            Ok(exec) => Ok(exec.id),
            Err(failure) if failure.is_not_found() => Err(RuntimeError::NoSuchContainer(id.to_owned())),
            Err(failure) => Err(failure.of(format!("exec in container `{id}`"))),
        }
    }
}

/// The exit code of a command whose output has ended, which may be a moment before the engine knows it.
async fn exit_code(client: &bollard::Docker, exec: &str) -> std::result::Result<i64, Error> {
    loop {
        let answer = client.inspect_exec(exec).await?;
        match answer.exit_code {
            Some(exit_code) if answer.running != Some(true) => return Ok(exit_code),
            _ => sleep(POLL).await,
        }
    }
}

impl Runtime for Docker {
    async fn info(&self) -> Result<RuntimeInfo> {
        let client = self.client().await?;
        let both = async { tokio::try_join!(client.info(), client.version()) };
        let (info, version) =
            self.within(LOOK, both).await.map_err(|failure| failure.of("ask the engine about itself"))?;
        Ok(translate::info(info, version))
    }

    async fn list(&self, agent: &str) -> Result<Vec<Container>> {
        let client = self.client().await?;
        let ours = HashMap::from([("label", vec![format!("{}={agent}", labels::AGENT)])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&ours).build();
        let found = self.within(LOOK, client.list_containers(Some(options))).await;
        let found = found.map_err(|failure| failure.of("list containers"))?;
        // The list lacks pids, exit codes and times.
        let ids = found.into_iter().filter_map(|summary| summary.id);
        let mut inspected = stream::iter(ids).map(async |id| self.inspect(&id).await).buffer_unordered(INSPECTIONS);
        let mut containers = Vec::new();
        while let Some(container) = inspected.try_next().await? {
            // Those removed since are missing.
            containers.extend(container);
        }
        Ok(containers)
    }

    async fn inspect(&self, id: &str) -> Result<Option<Container>> {
        let client = self.client().await?;
        match self.within(LOOK, client.inspect_container(id, None)).await {
            Ok(answer) => Ok(Some(translate::container(answer))),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(failure.of(format!("inspect container `{id}`"))),
        }
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<String> {
        let client = self.client().await?;
        let options = CreateContainerOptionsBuilder::new().name(&spec.name).build();
        let recursive_read_only = client.client_version() >= RECURSIVE_READ_ONLY;
        if !recursive_read_only && spec.mounts.iter().any(|mount| mount.read_only && mount.below == Below::ReadOnly) {
            // It would ignore the wish.
            return Err(RuntimeError::Refused {
                operation: format!("create container `{}`", spec.name),
                reason: "recursiveReadOnly needs Docker 25 or newer".to_owned(),
            });
        }
        let body = translate::create_body(spec, recursive_read_only);
        match self.within(CHANGE, client.create_container(Some(options), body)).await {
            Ok(answer) => Ok(answer.id),
            // A 404 can also be about a container whose namespaces are to be joined.
            Err(Failure::Status(404, words)) if words.to_lowercase().contains("no such image") => {
                Err(RuntimeError::NoSuchImage(spec.image.clone()))
            }
            Err(failure) if failure.is_invalid_reference() => Err(RuntimeError::InvalidImage(spec.image.clone())),
            Err(failure) if failure.is_conflict() => Err(RuntimeError::NameTaken(spec.name.clone())),
            Err(failure) => Err(failure.of(format!("create container `{}`", spec.name))),
        }
    }

    async fn start(&self, id: &str) -> Result<()> {
        let client = self.client().await?;
        match self.within(CHANGE, client.start_container(id, None)).await {
            Ok(()) => Ok(()),
            // A 404 can also be about the program to run: "executable file not found".
            Err(Failure::Status(404, words)) if words.to_lowercase().contains("no such container") => {
                Err(RuntimeError::NoSuchContainer(id.to_owned()))
            }
            Err(failure) => Err(failure.of(format!("start container `{id}`"))),
        }
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<()> {
        let client = self.client().await?;
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let seconds = i32::try_from(seconds).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::new().t(seconds).build();
        let operation = || format!("stop container `{id}`");
        match self.within(grace.saturating_add(CHANGE), client.stop_container(id, Some(options))).await {
            Ok(()) => {}
            Err(failure) if failure.is_not_found() => return Ok(()),
            Err(failure) => return Err(failure.of(operation())),
        }
        // The engine answers even when SIGKILL did not help, so that it is asked once more.
        let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
        let mut end = client.wait_container(id, Some(options));
        match timeout(KILL, end.next()).await {
            // The client makes an error of an exit code other than 0.
            Ok(None | Some(Ok(_) | Err(Error::DockerContainerWaitError { .. }))) => Ok(()),
            Ok(Some(Err(error))) => match Failure::new(&self.host, &error) {
                failure if failure.is_not_found() => Ok(()),
                failure => Err(failure.of(operation())),
            },
            Err(_) => {
                Err(RuntimeError::Refused { operation: operation(), reason: "SIGKILL did not end it".to_owned() })
            }
        }
    }

    async fn remove(&self, id: &str) -> Result<()> {
        let client = self.client().await?;
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let removed = async {
            loop {
                match client.remove_container(id, Some(options.clone())).await {
                    Err(error) if Failure::new(&self.host, &error).is_conflict() => sleep(POLL).await, // being removed
                    answer => return answer,
                }
            }
        };
        match self.within(CHANGE, removed).await {
            Err(failure) if !failure.is_not_found() => Err(failure.of(format!("remove container `{id}`"))),
            _ => Ok(()),
        }
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>> {
        let client = self.client().await?;
        match self.within(LOOK, client.inspect_image(reference)).await {
            Ok(answer) => Ok(Some(translate::image(answer))),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(failure.of(format!("inspect image `{reference}`"))),
        }
    }

    async fn pull(&self, reference: &str, progress: &(dyn Fn(PullProgress) + Sync)) -> Result<()> {
        let client = self.client().await?;
        let options = CreateImageOptionsBuilder::new().from_image(&translate::tagged(reference)).build();
        let (credentials, trouble) = match credentials::find(&self.credentials, reference).await {
            Ok(found) => (found.map(|(server, secret)| translate::credentials(server, secret)), String::new()),
            Err(error) => (None, format!(" (asked without credentials: {error})")),
        };
        let mut lines = client.create_image(Some(options), None, credentials);
        let failed =
            |reason: String| RuntimeError::Pull { image: reference.to_owned(), reason: format!("{reason}{trouble}") };
        loop {
            match timeout(PULL_PROGRESS, lines.try_next()).await {
                Ok(Ok(Some(line))) => progress(translate::pull_progress(line)),
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => {
                    return Err(match Failure::new(&self.host, &error) {
                        Failure::Silent(words) => RuntimeError::Unreachable(words),
                        other if other.is_invalid_reference() => RuntimeError::InvalidImage(reference.to_owned()),
                        other => failed(other.words()),
                    });
                }
                Err(_) => return Err(failed(format!("no progress for {} s", PULL_PROGRESS.as_secs()))),
            }
        }
    }

    async fn remove_image(&self, reference: &str) -> Result<()> {
        let client = self.client().await?;
        let options = None::<bollard::query_parameters::RemoveImageOptions>;
        match self.within(CHANGE, client.remove_image(reference, options, None)).await {
            Err(failure) if !failure.is_not_found() => Err(failure.of(format!("remove image `{reference}`"))),
            _ => Ok(()),
        }
    }

    async fn exec(&self, id: &str, command: &[String], limit: Duration) -> Result<ExecOutput> {
        let client = self.client().await?;
        let spec = ExecSpec { command: command.to_vec(), stdout: true, stderr: true, ..ExecSpec::default() };
        // Not part of the command's own time: an engine that hangs is not a command that is slow.
        let exec = self.create_exec(id, &spec).await?;
        let run = async {
            let mut kept = Vec::new();
            if let StartExecResults::Attached { mut output, input: _open } = client.start_exec(&exec, None).await? {
                while let Some(part) = output.try_next().await? {
                    let part = part.into_bytes();
                    kept.extend_from_slice(&part[..part.len().min(ExecOutput::LIMIT - kept.len())]);
                }
            }
            Ok((exit_code(client, &exec).await?, kept))
        };
        match timeout(limit, run).await {
            Ok(Ok((exit_code, output))) => Ok(ExecOutput::new(exit_code, &output)),
            Ok(Err(error)) => Err(Failure::new(&self.host, &error).of(format!("exec in container `{id}`"))),
            Err(_) => Err(RuntimeError::TimedOut(limit)),
        }
    }

    async fn open_exec(&self, id: &str, spec: &ExecSpec) -> Result<Session> {
        let version = self.client().await?.client_version();
        let exec = self.create_exec(id, spec).await?;
        let opened = timeout(LOOK, session::open(&self.host, version, &exec, spec.tty)).await;
        let (output, input) = match opened {
            Ok(Ok(streams)) => streams,
            Ok(Err(failure)) => return Err(failure.of(format!("exec in container `{id}`"))),
            Err(_) => return Err(Failure::late(&self.host, LOOK).of(format!("exec in container `{id}`"))),
        };
        Ok(Session { id: exec, output, input })
    }

    async fn resize_exec(&self, exec: &str, width: u16, height: u16) -> Result<()> {
        let client = self.client().await?;
        let size = ResizeExecOptionsBuilder::new().w(i32::from(width)).h(i32::from(height)).build();
        let resized = self.within(CHANGE, client.resize_exec(exec, size)).await;
        resized.map_err(|failure| failure.of(format!("resize the terminal of exec `{exec}`")))
    }

    async fn exec_code(&self, exec: &str) -> Result<i64> {
        let client = self.client().await?;
        let code = exit_code(client, exec).await;
        code.map_err(|error| Failure::new(&self.host, &error).of(format!("ask how exec `{exec}` ended")))
    }

    async fn logs(&self, id: &str, lines: usize) -> Result<String> {
        let client = self.client().await?;
        let options = LogsOptionsBuilder::new().stdout(true).stderr(true).tail(&lines.to_string()).build();
        let parts = client.logs(id, Some(options)).map_ok(bollard::container::LogOutput::into_bytes);
        match self.within(CHANGE, parts.try_collect::<Vec<_>>()).await {
            Ok(parts) => Ok(String::from_utf8_lossy(&parts.concat()).into_owned()),
            Err(failure) if failure.is_not_found() => Err(RuntimeError::NoSuchContainer(id.to_owned())),
            Err(failure) => Err(failure.of(format!("read the log of container `{id}`"))),
        }
    }

    fn read_log(&self, id: &str, query: LogQuery) -> BoxStream<'static, Result<Vec<u8>>> {
        let since = query.since.map_or(0, |since| i32::try_from(since.as_second()).unwrap_or(i32::MAX));
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .tail(&query.tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string()))
            .since(since)
            .timestamps(query.timestamps)
            .follow(query.follow)
            .build();
        let (docker, id) = (self.clone(), id.to_owned());
        let parts = async move {
            // Bounds the time to the first answer alone.
            let client = docker.client().await?.clone().with_timeout(LOOK);
            let parts = client.logs(&id, Some(options));
            Ok(parts.map_ok(|part| part.into_bytes().to_vec()).map_err(move |error| {
                match Failure::new(&docker.host, &error) {
                    failure if failure.is_not_found() => RuntimeError::NoSuchContainer(id.clone()),
                    failure => failure.of(format!("read the log of container `{id}`")),
                }
            }))
        };
        until_error(stream::once(parts).try_flatten().boxed())
    }

    fn events(&self, agent: &str) -> BoxStream<'static, Result<Event>> {
        // The engine sends what happened since then even if the stream is first polled, or connected, later.
        let since = Clock::system().now();
        let since = format!("{}.{:09}", since.as_second(), since.subsec_nanosecond());
        let filters = HashMap::from([
            ("type", vec!["container".to_owned()]),
            ("label", vec![format!("{}={agent}", labels::AGENT)]),
            ("event", translate::EVENTS.map(str::to_owned).to_vec()),
        ]);
        let options = EventsOptionsBuilder::new().since(&since).filters(&filters).build();
        let docker = self.clone();
        let lost = |words: String| RuntimeError::Unreachable(words);
        let messages = async move {
            let client = docker.client().await?.clone().with_timeout(LOOK);
            let messages = client.events(Some(options));
            Ok(messages.map_err(move |error| lost(Failure::new(&docker.host, &error).words())))
        };
        let events = stream::once(messages)
            .try_flatten()
            .try_filter_map(async |message| Ok(translate::event(message)))
            .chain(stream::once(async move { Err(lost("the event stream has ended".to_owned())) }));
        until_error(events.boxed())
    }
}

/// The header with a registry's credentials is base64 in the alphabet for URLs, but the client writes the other one,
/// and the engine then pulls without credentials: `~` in the right place of a password is enough.
fn url_safe_credentials(mut request: bollard::BollardRequest) -> bollard::BollardRequest {
    if let Some(value) = request.headers_mut().get_mut("X-Registry-Auth") {
        let safe = value.as_bytes().iter().map(|byte| match byte {
            b'+' => b'-',
            b'/' => b'_',
            other => *other,
        });
        // Of the same characters as before.
        if let Ok(mut safe) = HeaderValue::from_bytes(&safe.collect::<Vec<_>>()) {
            safe.set_sensitive(true);
            *value = safe;
        }
    }
    request
}

/// The items up to the first error, that included.
fn until_error<T: Send + 'static>(items: BoxStream<'static, Result<T>>) -> BoxStream<'static, Result<T>> {
    stream::unfold(Some(items), async |items| {
        let mut items = items?;
        let item = items.next().await?;
        let rest = item.is_ok().then_some(items);
        Some((item, rest))
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    use super::*;

    fn nowhere() -> (TempDir, Docker) {
        let directory = tempfile::tempdir().unwrap();
        let host = format!("unix://{}/docker.sock", directory.path().display());
        (directory, Docker::connect(Some(&host)).unwrap())
    }

    type Answer = (&'static str, &'static str);

    /// A server that gives one answer to `GET /version` and another to everything else.
    fn server(version: Answer, rest: Answer) -> (TempDir, Docker) {
        let (directory, docker) = nowhere();
        let listener = UnixListener::bind(directory.path().join("docker.sock")).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut question = [0; 4096];
                let length = stream.read(&mut question).await.unwrap();
                let (status, body) = if question[..length].starts_with(b"GET /version") { version } else { rest };
                let answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (directory, docker)
    }

    /// An engine that gives this answer to whatever it is asked.
    fn engine(status: &'static str, body: &'static str) -> (TempDir, Docker) {
        server(("200 OK", r#"{"ApiVersion":"1.41"}"#), (status, body))
    }

    #[test]
    fn addresses_of_other_kinds_are_refused() {
        for host in ["ssh://me@there", "https://there:2376", "fd://", "/var/run/docker.sock"] {
            let error = Docker::connect(Some(host)).unwrap_err().to_string();
            assert!(error.contains(host) && error.contains("unix://"), "{error}");
        }
        for (host, want) in [(None, DEFAULT_HOST), (Some(""), DEFAULT_HOST), (Some("tcp://a:1"), "tcp://a:1")] {
            assert_eq!(Docker::connect(host).unwrap().host(), want);
        }
    }

    #[tokio::test]
    async fn an_engine_that_is_not_there_is_unreachable_and_may_come_later() {
        let (directory, docker) = nowhere();
        let error = docker.info().await.unwrap_err();
        assert!(error.is_unreachable() && error.to_string().contains("no such socket"), "{error}");
        let mut events = docker.events("a");
        assert!(events.next().await.unwrap().unwrap_err().is_unreachable());
        assert!(events.next().await.is_none(), "an error ends the stream");

        drop(std::os::unix::net::UnixListener::bind(directory.path().join("docker.sock")).unwrap());
        let error = docker.info().await.unwrap_err();
        assert!(error.is_unreachable() && error.to_string().contains("refused"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_hangs_is_unreachable() {
        let (directory, docker) = nowhere();
        let _silent = std::os::unix::net::UnixListener::bind(directory.path().join("docker.sock")).unwrap();
        let error = docker.list("a").await.unwrap_err();
        assert!(error.is_unreachable() && error.to_string().contains("within 10 s"), "{error}");
    }

    #[tokio::test]
    async fn something_else_on_the_socket_is_named() {
        let (_directory, docker) = server(("404 Not Found", "what?"), ("404 Not Found", "what?"));
        let error = docker.info().await.unwrap_err();
        assert!(error.is_unreachable() && error.to_string().contains("not a Docker Engine"), "{error}");
    }

    #[tokio::test]
    async fn the_engines_words_survive_a_refusal() {
        let (_directory, docker) = engine("500 Internal Server Error", r#"{"message":"no space left on device"}"#);
        let spec = ContainerSpec { name: "x".to_owned(), ..ContainerSpec::default() };
        let error = docker.create(&spec).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot create container `x`: no space left on device");
    }

    #[tokio::test]
    async fn an_event_stream_that_ends_is_an_error() {
        let line = r#"{"Type":"container","Action":"die","Actor":{"ID":"c","Attributes":{}}}"#;
        let (_directory, docker) = engine("200 OK", line);
        let mut events = docker.events("a");
        assert_eq!(events.next().await.unwrap().unwrap().container, "c");
        assert!(events.next().await.unwrap().unwrap_err().is_unreachable());
        assert!(events.next().await.is_none());
    }

    const PULLED: &str = concat!(
        r#"{"status":"Pulling from etcd","id":"3.7"}"#,
        "\r\n",
        r#"{"status":"Downloading","progressDetail":{"current":5,"total":10},"id":"aa"}"#,
        "\r\n",
        r#"{"status":"Pull complete","progressDetail":{},"id":"aa"}"#,
        "\r\n",
    );
    const PULL_BROKE: &str = concat!(
        r#"{"status":"Pulling from etcd","id":"3.7"}"#,
        "\r\n",
        r#"{"errorDetail":{"message":"unexpected EOF"},"error":"unexpected EOF"}"#,
        "\r\n",
    );

    #[tokio::test]
    async fn a_pull_reports_its_progress() {
        let (_directory, docker) = engine("200 OK", PULLED);
        let seen = Mutex::new(Vec::new());
        docker.pull("etcd:3.7", &|step| seen.lock().unwrap().push(step)).await.unwrap();
        let step = |layer: &str, status: &str, bytes| PullProgress {
            layer: layer.to_owned(),
            status: status.to_owned(),
            bytes,
        };
        assert_eq!(
            seen.into_inner().unwrap(),
            [
                step("3.7", "Pulling from etcd", None),
                step("aa", "Downloading", Some((5, 10))),
                step("aa", "Pull complete", None),
            ]
        );
    }

    #[tokio::test]
    async fn a_pull_brings_the_credentials_of_its_registry() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("docker.sock")).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut question = [0; 4096];
                let length = stream.read(&mut question).await.unwrap();
                log.lock().unwrap().push(String::from_utf8_lossy(&question[..length]).into_owned());
                let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"ApiVersion\":\"1.41\"}";
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let file = directory.path().join("config.json");
        // In one of these, the standard alphabet needs a `+` or a `/`.
        std::fs::write(&file, r#"{"auths": {"a.example": {"username": "me", "password": "~~~???>>>ä"}}}"#).unwrap();
        let host = format!("unix://{}/docker.sock", directory.path().display());
        let docker = Docker::connect(Some(&host)).unwrap().with_credentials(vec![file]);
        for image in ["a.example/x:1", "b.example/x:1"] {
            docker.pull(image, &|_| {}).await.unwrap();
        }
        let seen = seen.lock().unwrap();
        let header = |question: &String| {
            let line = question.lines().find(|line| line.to_lowercase().starts_with("x-registry-auth:"));
            line.map(|line| line.split_once(": ").unwrap().1.to_owned())
        };
        let sent: Vec<_> = seen.iter().filter(|question| question.starts_with("POST")).map(header).collect();
        assert_eq!(sent.len(), 2);
        assert_eq!(sent[1], None);
        let decoded = base64::Engine::decode(&base64::prelude::BASE64_URL_SAFE, sent[0].as_ref().unwrap()).unwrap();
        let decoded: serde_json::Value = serde_json::from_slice(&decoded).unwrap();
        assert_eq!((&decoded["username"], &decoded["password"]), (&"me".into(), &"~~~???>>>ä".into()));
        assert_eq!(decoded["serveraddress"], "a.example");
    }

    #[tokio::test]
    async fn an_error_within_a_pull_is_an_error() {
        for (status, body, reason) in [
            ("200 OK", PULL_BROKE, "unexpected EOF"),
            ("404 Not Found", r#"{"message":"pull access denied"}"#, "pull access denied"),
        ] {
            let (_directory, docker) = engine(status, body);
            let error = docker.pull("etcd:3.7", &|_| {}).await.unwrap_err();
            assert_eq!(error.to_string(), format!("cannot pull image `etcd:3.7`: {reason}"));
        }
    }
}
