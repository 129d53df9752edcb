//! Lifecycle hooks: what is done in or to a container right after its start and before its end.
//!
//! A hook is performed at most once: an agent that dies meanwhile leaves it as it is, as a kubelet does.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::time::sleep;

use super::probe::{Prober, Target};
use crate::runtime::Runtime;

/// The kubelet gives a command no time limit but what the caller sets; the runtime wants one.
const NO_LIMIT: Duration = Duration::from_hours(24 * 365);
/// As the kubelet calls itself here.
const USER_AGENT: &str = "kube-lifecycle/1.37";

/// What is done right after the start of `container`.
pub fn post_start(container: &Container) -> Option<&LifecycleHandler> {
    container.lifecycle.as_ref()?.post_start.as_ref()
}

/// What is done before `container` is stopped.
pub fn pre_stop(container: &Container) -> Option<&LifecycleHandler> {
    container.lifecycle.as_ref()?.pre_stop.as_ref()
}

/// Performs `handler`, however long it takes. An HTTP answer of any status will do, as for the kubelet.
pub async fn perform<R: Runtime>(
    prober: &Prober<R>,
    handler: &LifecycleHandler,
    container: &Container,
    target: &Target,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let output = prober.exec(&command, target, NO_LIMIT).await.map_err(|error| error.to_string())?;
        if output.exit_code != 0 {
            let last = output.output.lines().last().unwrap_or_default();
            return Err(format!("exit code {}: {last}", output.exit_code));
        }
    } else if let Some(get) = &handler.http_get {
        prober.get(&with_port(get), container, target, Some(USER_AGENT)).await?;
    } else if let Some(pause) = &handler.sleep {
        sleep(Duration::from_secs(u64::try_from(pause.seconds).unwrap_or(0))).await;
    }
    Ok(())
}

/// Without a port it is 80.
fn with_port(get: &HTTPGetAction) -> HTTPGetAction {
    match &get.port {
        IntOrString::String(name) if name.is_empty() => HTTPGetAction { port: IntOrString::Int(80), ..get.clone() },
        _ => get.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::Clock;
    use crate::runtime::fake::FakeRuntime;

    /// Performs a `postStart` hook in a pod at 127.0.0.1 and returns what it asked for over HTTP.
    async fn get(fields: &str, answer: &str) -> (Result<(), String>, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let pod = crate::agent::pod::tests::pod(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  containers:\n  - name: c\n    image: i\n    \
             ports: [{{name: web, containerPort: {port}}}]\n    lifecycle: {{postStart: {{httpGet: {{{fields}}}}}}}\n"
        ));
        let answer = answer.to_owned();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let clock = Clock::system();
        let prober = Prober::new(Arc::new(FakeRuntime::new(clock.clone())), clock.clone()).unwrap();
        let target =
            Target { container_id: "c".into(), started_at: clock.now(), address: "127.0.0.1".parse().unwrap() };
        let container = &pod.containers()[0];
        let result = perform(&prober, post_start(container).unwrap(), container, &target).await;
        (result, server.await.unwrap())
    }

    #[tokio::test]
    async fn any_answer_will_do() {
        for status in ["200 OK", "500 Internal Server Error"] {
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            let (result, request) = get("port: web, path: /up, httpHeaders: [{name: X-Why, value: x}]", &answer).await;
            assert_eq!(result, Ok(()), "{status}");
            assert!(request.starts_with("GET /up HTTP/1.1\r\n"), "{request}");
            let headers = request.to_lowercase();
            assert!(headers.contains("x-why: x\r\n") && headers.contains("user-agent: kube-lifecycle/"), "{request}");
        }
        let (result, _) = get("port: web", "nonsense\r\n\r\n").await;
        assert!(result.is_err());
    }

    #[test]
    fn without_a_port_it_is_80() {
        for (port, expected) in [("", IntOrString::Int(80)), ("web", IntOrString::String("web".to_owned()))] {
            let get = HTTPGetAction { port: IntOrString::String(port.to_owned()), ..HTTPGetAction::default() };
            assert_eq!(with_port(&get).port, expected);
        }
    }
}
