//! Manifests as full files, and beside what kubeadm v1.37.1 writes for the same configuration.
//!
//! `tests/golden/config/CASE.yaml` is the configuration, `tests/golden/manifests/CASE/` what plinth renders of it, and
//! `tests/golden/kubeadm/CASE/` what `kubeadm init phase etcd local` and `… control-plane all` wrote of it on a host
//! with three CA directories, `HTTPS_PROXY=http://proxy.example.com:3128` and `no_proxy=10.0.0.0/8`.
//!
//! `PLINTH_UPDATE_GOLDEN=1` writes the manifests anew; the test then fails, so that it cannot stay turned on.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use plinth::config::{self, Cluster, ConfigFile, HostFacts, Overrides};
use plinth::layout::Layout;
use plinth::manifests::{self, Manifest};
use plinth::release::Component;
use plinth::yaml;

const CASES: [&str; 6] = ["defaults", "previous-minor", "ipv6", "dual-stack", "extras", "places"];

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn host() -> HostFacts {
    let directories = ["/etc/ca-certificates", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates"];
    HostFacts {
        hostname: "other".into(),
        ca_directories: directories.map(PathBuf::from).to_vec(),
        proxy_variables: vec![
            ("HTTPS_PROXY".into(), "http://proxy.example.com:3128".into()),
            ("no_proxy".into(), "10.0.0.0/8".into()),
        ],
        ..HostFacts::default()
    }
}

fn cluster(case: &str) -> Cluster {
    let text = read(&directory().join("config").join(format!("{case}.yaml")));
    let file = ConfigFile { name: case, text: &text };
    config::load(Some(file), &Overrides::default(), &host()).unwrap_or_else(|errors| panic!("{errors}")).cluster
}

fn render(case: &str, component: Component) -> Manifest {
    manifests::render(&cluster(case), component, &Layout::default()).unwrap_or_else(|error| panic!("{case}: {error:?}"))
}

fn every_manifest() -> impl Iterator<Item = (&'static str, Component)> {
    CASES.into_iter().flat_map(|case| Component::ALL.map(|component| (case, component)))
}

#[test]
fn manifests_are_as_the_golden_files_say() {
    let update = std::env::var_os("PLINTH_UPDATE_GOLDEN").is_some_and(|value| value == "1");
    for (case, component) in every_manifest() {
        let path = directory().join("manifests").join(case).join(manifests::file_name(component));
        let rendered = render(case, component).yaml;
        if update {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &rendered).unwrap();
        } else {
            let golden = read(&path);
            assert!(rendered == golden, "{}:\n{}", path.display(), difference(&golden, &rendered));
        }
    }
    assert!(!update, "golden files written: look at the difference and run again without PLINTH_UPDATE_GOLDEN");
}

fn difference(golden: &str, rendered: &str) -> String {
    similar::TextDiff::from_lines(golden, rendered).unified_diff().header("golden", "rendered").to_string()
}

#[test]
fn manifests_mean_what_kubeadm_writes() {
    for (case, component) in every_manifest() {
        let path = directory().join("kubeadm").join(case).join(manifests::file_name(component));
        let mut theirs: Pod = yaml::manifest(read(&path).as_bytes()).unwrap();
        theirs.status = None;
        let mut ours = render(case, component).pod;

        let annotations = ours.metadata.annotations.get_or_insert_default();
        let (after, uses) = match component {
            Component::Etcd => (None, None),
            Component::KubeApiserver => (None, Some("etcd")),
            Component::KubeControllerManager | Component::KubeScheduler => (Some("kube-apiserver"), None),
        };
        let surge = (component == Component::KubeApiserver).then_some("surge");
        assert_eq!(annotations.remove("plinth.dev/update").as_deref(), surge, "{case}/{component}");
        assert_eq!(annotations.remove("plinth.dev/after").as_deref(), after, "{case}/{component}");
        assert_eq!(annotations.remove("plinth.dev/uses").as_deref(), uses, "{case}/{component}");
        ours.metadata.annotations = ours.metadata.annotations.filter(|annotations| !annotations.is_empty());
        if component == Component::Etcd {
            // For watches, which never end, etcd would wait seven seconds.
            assert_eq!(ours.spec.as_mut().unwrap().termination_grace_period_seconds.take(), Some(2));
        }
        if component == Component::KubeApiserver {
            // Unlike a kubelet, the agent starts the new one beside the old one, which then closes its watches.
            let command = ours.spec.as_mut().unwrap().containers[0].command.as_mut().unwrap();
            for flag in ["--permit-port-sharing=true", "--shutdown-watch-termination-grace-period=2s"] {
                let place = command.iter().position(|one| one == flag).unwrap();
                command.remove(place);
            }
        }
        if (case, component) == ("previous-minor", Component::Etcd) {
            // kubeadm 1.37 runs 1.36 with its own etcd; plinth with the one that 1.36 was released with.
            let image = &mut theirs.spec.as_mut().unwrap().containers[0].image;
            assert_eq!(image.replace("registry.k8s.io/etcd:3.6.8-0".into()).unwrap(), "registry.k8s.io/etcd:3.7.0-0");
        }
        // kubeadm mounts etcd's data first, the others by name; the order of mounts means nothing here.
        let by_path = |pod: &mut Pod| {
            let mounts = pod.spec.as_mut().unwrap().containers[0].volume_mounts.as_mut().unwrap();
            mounts.sort_by(|a, b| a.mount_path.cmp(&b.mount_path));
        };
        by_path(&mut ours);
        by_path(&mut theirs);
        assert!(ours == theirs, "{case}/{component}:\n{}", difference(&json(&theirs), &json(&ours)));
    }
}

fn json(pod: &Pod) -> String {
    serde_json::to_string_pretty(pod).unwrap()
}

/// kubeadm: `UsingExternalCA` in `getControllerManagerCommand`.
#[test]
fn without_the_key_of_the_authority_nothing_is_signed() {
    let mut cluster = cluster("defaults");
    cluster.host.external_ca = true;
    let manifest = manifests::render(&cluster, Component::KubeControllerManager, &Layout::default()).unwrap();
    let command = manifest.pod.spec.unwrap().containers[0].command.clone().unwrap();
    for flag in ["--cluster-signing-cert-file=", "--cluster-signing-key-file="] {
        assert!(command.iter().any(|argument| argument == flag), "{flag}: {command:#?}");
    }
}

#[test]
fn what_a_manifest_means_survives_writing_and_reading() {
    for (case, component) in every_manifest() {
        let Manifest { pod, yaml: text, .. } = render(case, component);
        // A strict reader takes it for the same, and so does the kubelet's way of reading what we would write of it.
        assert_eq!(yaml::from_str::<Pod>(&text).unwrap(), pod, "{case}/{component}");
        let written = yaml::to_string(&pod).unwrap();
        assert_eq!(yaml::manifest::<Pod>(written.as_bytes()).unwrap(), pod, "{case}/{component}");
        assert_eq!(pod.metadata.name.as_deref(), Some(component.name()));
    }
}

#[test]
fn every_template_has_golden_files_and_every_golden_file_a_template() {
    let names = |path: &Path| {
        let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let mut templates = names(&Path::new(env!("CARGO_MANIFEST_DIR")).join("templates/control-plane"));
    // What the others extend.
    templates.retain(|name| name != "pod.yaml");
    let mut cases = CASES.map(str::to_owned);
    cases.sort();
    assert_eq!(names(&directory().join("manifests")), cases);
    for case in CASES {
        assert_eq!(names(&directory().join("manifests").join(case)), templates, "{case}");
    }
}

#[test]
fn every_path_of_ours_stays_below_another_root() {
    let layout = Layout::new("/tmp/root");
    let cluster = cluster("places");
    for component in Component::ALL {
        let spec = manifests::render(&cluster, component, &layout).unwrap().pod.spec.unwrap();
        for volume in spec.volumes.unwrap() {
            let path = volume.host_path.unwrap().path;
            let of_the_host = volume.name == "ca-certs" || volume.name.ends_with("-ca-certificates");
            assert_eq!(path.starts_with("/tmp/root/"), !of_the_host, "{component}: {path}");
        }
        for part in spec.containers[0].command.as_ref().unwrap() {
            let value = part.split_once('=').map_or("", |(_, value)| value);
            assert!(!value.starts_with('/') || value.starts_with("/tmp/root/"), "{component}: {part}");
        }
    }
}

#[test]
fn no_value_breaks_out_of_its_place() {
    let hostile = "a\"b'c: #d\n- e\t{{ x }} {% y %} \\ \u{7f}\u{85}\u{feff}\u{2028}ü🦀";
    let text = serde_json::json!({
        "apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "ClusterConfiguration", "clusterName": hostile,
        "scheduler": {"extraArgs": [{"name": "x", "value": hostile}], "extraEnvs": [{"name": "E", "value": hostile}]},
    });
    let overrides = Overrides { node_name: Some("n".into()), ..Overrides::default() };
    let init = "---\napiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nlocalAPIEndpoint: {advertiseAddress: 192.0.2.1}\n";
    // JSON leaves as they are what YAML wants escaped.
    let escape = |text: String, c: char| text.replace(c, &format!("\\u{:04x}", u32::from(c)));
    let text = ['\u{7f}', '\u{85}', '\u{feff}', '\u{2028}'].into_iter().fold(text.to_string(), escape);
    let text = format!("{text}\n{init}");
    let mut loaded = config::load(Some(ConfigFile { name: "c", text: &text }), &overrides, &host()).unwrap();
    // What is written names the version.
    loaded.cluster.version_pinned = true;
    let written = config::to_wire_yaml(&loaded.cluster);
    let again = config::load(Some(ConfigFile { name: "w", text: &written }), &overrides, &host());
    assert_eq!(again.map(|again| again.cluster).as_ref(), Ok(&loaded.cluster), "{written}");
    let command = |component| {
        let pod = manifests::render(&loaded.cluster, component, &Layout::default()).unwrap().pod;
        pod.spec.unwrap().containers.remove(0)
    };
    let scheduler = command(Component::KubeScheduler);
    assert!(scheduler.command.unwrap().contains(&format!("--x={hostile}")));
    let variable = scheduler.env.unwrap().into_iter().find(|variable| variable.name == "E").unwrap();
    assert_eq!(variable.value.as_deref(), Some(hostile));
    let manager = command(Component::KubeControllerManager).command.unwrap();
    assert!(manager.contains(&format!("--cluster-name={hostile}")));
}
