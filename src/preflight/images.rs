//! Gets the images that are missing.

use crate::error::Hint;
use crate::runtime::{PullProgress, Runtime, RuntimeError};

/// What happens to which image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageProgress<'a> {
    /// Is on this host already.
    Present(&'a str),
    /// Is being pulled, and this far.
    Pulling(&'a str, PullProgress),
    /// Was pulled.
    Pulled(&'a str),
}

/// An image that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot get image `{image}`{}", also(.untried))]
pub struct ImagePullError {
    /// The image.
    pub image: String,
    /// Missing as well, but not tried after this one failed: mostly they come from the same place, and a registry
    /// that does not answer takes its time.
    pub untried: Vec<String>,
    /// Why.
    #[source]
    pub source: RuntimeError,
}

fn also(untried: &[String]) -> String {
    if untried.is_empty() { String::new() } else { format!("; also missing: {}", untried.join(", ")) }
}

impl Hint for ImagePullError {
    fn hints(&self) -> Vec<String> {
        if self.source.is_unreachable() {
            return vec!["start Docker, and run the same command again".to_owned()];
        }
        vec![
            format!("see what the registry says: docker pull {}", self.image),
            "without a registry, bring the images as an archive: docker load -i IMAGES.tar".to_owned(),
            "or name a registry that this host reaches: --image-repository".to_owned(),
        ]
    }
}

/// Pulls those of `images` that are missing, one after the other, and returns them.
///
/// Record what is about to be pulled first ([`Report::images_to_pull`](super::Report)), so that an interrupted run
/// leaves nothing behind that nobody knows of.
pub async fn ensure_images<R: Runtime>(
    runtime: &R,
    images: &[String],
    progress: &(dyn Fn(ImageProgress<'_>) + Sync),
) -> Result<Vec<String>, ImagePullError> {
    let mut missing = Vec::new();
    for image in images {
        match runtime.image(image).await {
            Ok(Some(_)) => progress(ImageProgress::Present(image)),
            Ok(None) if missing.contains(image) => {}
            Ok(None) => missing.push(image.clone()),
            Err(source) => return Err(ImagePullError { image: image.clone(), untried: Vec::new(), source }),
        }
    }
    for (place, image) in missing.iter().enumerate() {
        runtime.pull(image, &|step| progress(ImageProgress::Pulling(image, step))).await.map_err(|source| {
            ImagePullError { image: image.clone(), untried: missing[place + 1..].to_vec(), source }
        })?;
        progress(ImageProgress::Pulled(image));
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::clock::Clock;
    use crate::runtime::fake::{FakeRuntime, Op};

    fn images(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[tokio::test]
    async fn only_what_is_missing_is_pulled_and_once() {
        let runtime = FakeRuntime::new(Clock::default());
        runtime.add_image("a");
        runtime.add_to_registry("b");
        let seen = Mutex::new(Vec::new());
        let pulled = ensure_images(&runtime, &images(&["a", "b", "b"]), &|step| {
            seen.lock().unwrap().push(match step {
                ImageProgress::Present(image) => format!("present {image}"),
                ImageProgress::Pulling(image, step) => format!("{} {image}", step.status),
                ImageProgress::Pulled(image) => format!("pulled {image}"),
            });
        })
        .await
        .unwrap();
        assert_eq!(pulled, ["b"]);
        assert_eq!(runtime.count(Op::Pull), 1);
        let seen = seen.into_inner().unwrap();
        assert_eq!(seen.first().unwrap(), "present a");
        assert!(seen.contains(&"Downloading b".to_owned()), "{seen:?}");
        assert_eq!(seen.last().unwrap(), "pulled b");
    }

    #[tokio::test]
    async fn a_failure_names_image_and_reason_and_what_was_not_tried() {
        let runtime = FakeRuntime::new(Clock::default());
        let error = ensure_images(&runtime, &images(&["x", "y"]), &|_| {}).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot get image `x`; also missing: y");
        assert_eq!(error.source.to_string(), "cannot pull image `x`: manifest unknown");
        let hints = error.hints().join("\n");
        for way in ["docker pull x", "docker load", "--image-repository"] {
            assert!(hints.contains(way), "{hints}");
        }
        assert_eq!(runtime.count(Op::Pull), 1);

        runtime.go_away();
        let error = ensure_images(&runtime, &images(&["x"]), &|_| {}).await.unwrap_err();
        assert_eq!(error.hints(), ["start Docker, and run the same command again"]);
    }
}
