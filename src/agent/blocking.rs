//! File work that may take long, beside everything else: the agent has one thread for all pods and its socket.
//!
//! A removed volume of many files takes seconds, and a directory of a network file system that hangs takes for ever.
//! Small files in the agent's own directory are written where they are needed: they take less than the hop.

use tokio::task::spawn_blocking;

/// Performs `work` on a thread that may block. A panic of `work` is one of the caller.
pub async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The whole agent is being torn down, and so is whoever waits.
            Err(_) => std::future::pending().await,
        },
    }
}
