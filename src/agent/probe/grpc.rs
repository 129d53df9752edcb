//! The gRPC health check (`grpc.health.v1.Health/Check`) of a probe: without TLS, one connection per question.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::GRPCAction;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::{Outcome, USER_AGENT, shortened};
use crate::error::root_cause;

/// Asks the service of `grpc` at `address` once; without a name it is the server as a whole.
pub(super) async fn check(address: IpAddr, grpc: &GRPCAction) -> Outcome {
    let address = SocketAddr::new(address, u16::try_from(grpc.port).unwrap_or(0));
    let service = grpc.service.clone().unwrap_or_default();
    let failure = |why: String| {
        let of = if service.is_empty() { String::new() } else { format!(" of `{service}`") };
        Outcome::Failure(format!("health check{of} at {address}: {why}"))
    };
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).and_then(|endpoint| endpoint.user_agent(USER_AGENT));
    let channel = match endpoint {
        Ok(endpoint) => endpoint.connect().await,
        Err(error) => Err(error),
    };
    let channel = match channel {
        Ok(channel) => channel,
        Err(error) => return failure(root_cause(&error).to_string()),
    };
    match HealthClient::new(channel).check(HealthCheckRequest { service: service.clone() }).await {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Outcome::Success,
            status => failure(status.as_str_name().to_owned()),
        },
        Err(status) => failure(format!("{:?}: {}", status.code(), shortened(status.message()))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;
    use tonic::transport::Server;
    use tonic::transport::server::TcpIncoming;
    use tonic_health::ServingStatus;

    use super::*;

    async fn ask(port: u16, service: Option<&str>) -> Outcome {
        let grpc = GRPCAction { port: port.into(), service: service.map(str::to_owned), mode: None };
        check(Ipv4Addr::LOCALHOST.into(), &grpc).await
    }

    #[tokio::test]
    async fn only_serving_is_a_success() {
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter.set_service_status("down", ServingStatus::NotServing).await;
        reporter.set_service_status("odd", ServingStatus::Unknown).await;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)));
        assert_eq!(ask(port, None).await, Outcome::Success);
        assert_eq!(ask(port, Some("")).await, Outcome::Success);
        for (service, reason) in [("down", ": NOT_SERVING"), ("odd", ": UNKNOWN"), ("nope", ": NotFound: ")] {
            let Outcome::Failure(why) = ask(port, Some(service)).await else { panic!("{service} serves") };
            assert!(why.starts_with(&format!("health check of `{service}` at 127.0.0.1:{port}: ")), "{why}");
            assert!(why.contains(reason), "{why}");
        }
    }

    #[tokio::test]
    async fn nobody_there_and_something_else_are_failures() {
        use tokio::io::AsyncWriteExt as _;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let web = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        });
        assert!(matches!(ask(port, None).await, Outcome::Failure(_)));
        web.await.unwrap();
        let Outcome::Failure(why) = ask(port, None).await else { panic!("nobody is there") };
        assert!(why.contains("refused"), "{why}");
    }
}
