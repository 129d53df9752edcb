//! What to do next while one etcd is replaced by another, from what is on the host. See the module's documentation
//! for the whole of it.

use super::data::Place;
use super::series::Change;

/// Which of the two etcds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// That which was there before.
    Old,
    /// That which replaces it.
    New,
}

/// Where the replacement is going, as far as the journal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// `etcd-swap` is recorded: to the new one.
    Forward,
    /// `etcd-swap-failed` too: back to the old one.
    Back,
    /// `etcd-swap-served` too: the copy must never be put back.
    Served,
}

impl Course {
    /// The etcd that is to serve in the end. That the other one is healthy is only a step on the way.
    pub fn goal(self) -> Which {
        if self == Self::Forward { Which::New } else { Which::Old }
    }
}

/// What etcd does, found out without believing anybody's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// None has the data open.
    Gone,
    /// One has, and there is no leader, or no answer.
    Silent,
    /// It answers and leads.
    Answers,
}

/// What is on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// Which etcd the manifest is for; `None`: there is no manifest, so that nobody starts one.
    pub manifest: Option<Which>,
    /// What etcd does.
    pub process: Process,
    /// Where the copied data are, if there is a whole copy that this replacement made.
    pub copy: Option<Place>,
    /// The etcd of the earlier series can open the data that are in use. While one answers, its
    /// [`Versions`](super::Versions) say so; afterwards [`DataDir`](super::DataDir) does. Unknown is `false`. The later
    /// one always can, and with two of the same series both can.
    pub earlier_can_open: bool,
}

/// The next step. Each may be repeated, and each changes what [`next`] sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Take the manifest away: the agent stops the etcd.
    Stop,
    /// Wait until no etcd has the data open; with a limit, since nothing may be done before.
    AwaitGone,
    /// Copy the data.
    Copy,
    /// Write the manifest: the agent starts that etcd.
    Start(Which),
    /// Wait until that etcd is healthy. It is, and it is [`Course::goal`]: the replacement is done, or undone. It is not: [`Course::Forward`]
    /// becomes [`Course::Back`]; on any other course plinth ends here, and says where the data of both are.
    Gate(Which),
    /// Ask whether the copy may be put back. It may: put it back. It may not, or there is none: [`Course::Served`].
    Judge,
    /// Let the later etcd make its data readable for the earlier one, while it serves.
    Downgrade,
}

/// Decides.
pub fn next(change: Change, course: Course, seen: &Observed) -> Next {
    let can_open = |which| match (change, which) {
        (Change::Upgrade, Which::Old) | (Change::Downgrade, Which::New) => seen.earlier_can_open,
        (Change::Unsupported, _) => false,
        _ => true,
    };
    match (course, seen.manifest) {
        (Course::Forward, Some(Which::Old)) if can_open(Which::New) => Next::Stop,
        (Course::Forward, Some(Which::Old)) => Next::Downgrade,
        (Course::Forward, Some(Which::New)) => Next::Gate(Which::New),
        (_, Some(Which::Old)) => Next::Gate(Which::Old),
        (_, None) if seen.process != Process::Gone => Next::AwaitGone,

        // Somebody has stopped it before it made its data readable.
        (Course::Forward, None) if !can_open(Which::New) => Next::Start(Which::Old),
        (Course::Forward, None) => match seen.copy {
            None => Next::Copy,
            Some(Place::Aside) => Next::Start(Which::New),
            // Put back, so this course was left; nothing may be copied over what was put aside.
            Some(Place::InUse) => Next::Start(Which::Old),
        },

        (_, Some(Which::New)) if can_open(Which::Old) => Next::Stop,
        // It serves: what it has acknowledged is kept.
        (_, Some(Which::New)) if seen.process == Process::Answers => Next::Downgrade,
        (Course::Back, Some(Which::New)) => Next::Stop,
        (Course::Served, Some(Which::New)) => Next::Gate(Which::New),

        (_, None) if can_open(Which::Old) => Next::Start(Which::Old),
        (Course::Back, None) => Next::Judge,
        (Course::Served, None) => Next::Start(Which::New),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Option<Which> = Some(Which::Old);
    const NEW: Option<Which> = Some(Which::New);
    const ASIDE: Option<Place> = Some(Place::Aside);
    const IN_USE: Option<Place> = Some(Place::InUse);

    fn seen(manifest: Option<Which>, process: Process, copy: Option<Place>, earlier_can_open: bool) -> Observed {
        Observed { manifest, process, copy, earlier_can_open }
    }

    #[test]
    fn each_interrupted_step_is_found_again() {
        use Course::{Back, Forward, Served};
        use Process::{Answers, Gone, Silent};
        for (what, course, seen, expected) in [
            ("begun", Forward, seen(OLD, Answers, None, true), Next::Stop),
            ("manifest taken away", Forward, seen(None, Answers, None, true), Next::AwaitGone),
            ("it shuts down", Forward, seen(None, Silent, None, true), Next::AwaitGone),
            ("gone, or copied in part", Forward, seen(None, Gone, None, true), Next::Copy),
            ("copied", Forward, seen(None, Gone, ASIDE, true), Next::Start(Which::New)),
            ("new manifest written", Forward, seen(NEW, Gone, ASIDE, true), Next::Gate(Which::New)),
            ("it starts", Forward, seen(NEW, Silent, ASIDE, false), Next::Gate(Which::New)),
            ("it serves", Forward, seen(NEW, Answers, ASIDE, false), Next::Gate(Which::New)),
            // It is no good.
            ("it never opened the data", Back, seen(NEW, Gone, ASIDE, true), Next::Stop),
            ("it exits again and again", Back, seen(NEW, Gone, ASIDE, false), Next::Stop),
            ("it hangs", Back, seen(NEW, Silent, ASIDE, false), Next::Stop),
            ("it serves, but not well", Back, seen(NEW, Answers, ASIDE, false), Next::Downgrade),
            ("manifest taken away", Back, seen(None, Silent, ASIDE, false), Next::AwaitGone),
            ("gone", Back, seen(None, Gone, ASIDE, false), Next::Judge),
            ("gone, and nothing opened", Back, seen(None, Gone, ASIDE, true), Next::Start(Which::Old)),
            ("put back", Back, seen(None, Gone, IN_USE, true), Next::Start(Which::Old)),
            ("old manifest written", Back, seen(OLD, Gone, IN_USE, true), Next::Gate(Which::Old)),
            ("the copy is lost", Back, seen(None, Gone, None, false), Next::Judge),
            ("put back, and unreadable", Back, seen(None, Gone, IN_USE, false), Next::Judge),
            // It has served.
            ("refused", Served, seen(None, Gone, ASIDE, false), Next::Start(Which::New)),
            ("it starts again", Served, seen(NEW, Silent, ASIDE, false), Next::Gate(Which::New)),
            ("it serves again", Served, seen(NEW, Answers, ASIDE, false), Next::Downgrade),
            ("downgraded", Served, seen(NEW, Answers, ASIDE, true), Next::Stop),
            ("downgraded, and its manifest taken away", Served, seen(None, Answers, ASIDE, true), Next::AwaitGone),
            ("downgraded and gone", Served, seen(None, Gone, ASIDE, true), Next::Start(Which::Old)),
            ("the old one starts", Served, seen(OLD, Silent, ASIDE, true), Next::Gate(Which::Old)),
            // What only an error of ours could bring about: nothing is overwritten.
            ("put back without having failed", Forward, seen(None, Gone, IN_USE, true), Next::Start(Which::Old)),
        ] {
            assert_eq!(next(Change::Upgrade, course, &seen), expected, "{what}");
        }
    }

    #[test]
    fn the_way_back_ends_on_the_old_etcd() {
        use Next::{AwaitGone, Downgrade, Gate, Start, Stop};
        // As after the copy was refused: nothing runs, and the data are those of the new etcd.
        let mut host = seen(None, Process::Gone, ASIDE, false);
        let mut steps = Vec::new();
        loop {
            let step = next(Change::Upgrade, Course::Served, &host);
            steps.push(step);
            match step {
                Next::Start(which) => (host.manifest, host.process) = (Some(which), Process::Silent),
                Next::Gate(which) if which == Course::Served.goal() => break,
                Next::Gate(_) => host.process = Process::Answers,
                Next::Downgrade => host.earlier_can_open = true,
                Next::Stop => host.manifest = None,
                Next::AwaitGone => host.process = Process::Gone,
                Next::Copy | Next::Judge => panic!("{steps:?}"),
            }
        }
        let [up, down] = [Which::New, Which::Old];
        assert_eq!(steps, [Start(up), Gate(up), Downgrade, Stop, AwaitGone, Start(down), Gate(down)]);
        assert_eq!([Course::Forward, Course::Back].map(Course::goal), [up, down]);
    }

    #[test]
    fn a_patch_needs_no_copy_to_go_back() {
        use Course::{Back, Forward};
        for (course, seen, expected) in [
            (Forward, seen(OLD, Process::Answers, None, true), Next::Stop),
            (Back, seen(NEW, Process::Silent, ASIDE, false), Next::Stop),
            (Back, seen(None, Process::Gone, ASIDE, false), Next::Start(Which::Old)),
        ] {
            assert_eq!(next(Change::Patch, course, &seen), expected, "{seen:?}");
        }
    }

    #[test]
    fn the_earlier_etcd_gets_its_data_before_the_later_one_is_stopped() {
        use Course::{Back, Forward};
        use Process::{Answers, Gone, Silent};
        for (what, course, seen, expected) in [
            ("begun", Forward, seen(OLD, Answers, None, false), Next::Downgrade),
            ("downgraded", Forward, seen(OLD, Answers, None, true), Next::Stop),
            ("gone", Forward, seen(None, Gone, None, true), Next::Copy),
            ("copied", Forward, seen(None, Gone, ASIDE, true), Next::Start(Which::New)),
            ("gone before it was downgraded", Forward, seen(None, Gone, None, false), Next::Start(Which::Old)),
            ("started again", Forward, seen(OLD, Silent, None, false), Next::Downgrade),
            ("it is no good", Back, seen(NEW, Silent, ASIDE, true), Next::Stop),
            ("the later one can always open", Back, seen(None, Gone, ASIDE, false), Next::Start(Which::Old)),
        ] {
            assert_eq!(next(Change::Downgrade, course, &seen), expected, "{what}");
        }
    }

    #[test]
    fn data_that_somebody_may_have_written_are_never_left_behind() {
        // Whatever is seen: after the new etcd has served, nobody judges, and the old one starts only on data that it
        // can open; nothing at all starts, is copied or judged while an etcd runs.
        let bools = [false, true];
        let manifests = [None, OLD, NEW];
        let processes = [Process::Gone, Process::Silent, Process::Answers];
        let copies = [None, ASIDE, IN_USE];
        for course in [Course::Forward, Course::Back, Course::Served] {
            for manifest in manifests {
                for process in processes {
                    for copy in copies {
                        for earlier_can_open in bools {
                            let seen = seen(manifest, process, copy, earlier_can_open);
                            let next = next(Change::Upgrade, course, &seen);
                            if course == Course::Served {
                                assert_ne!(next, Next::Judge, "{seen:?}");
                                assert!(next != Next::Start(Which::Old) || earlier_can_open, "{seen:?}");
                            }
                            if matches!(next, Next::Copy | Next::Judge | Next::Start(_)) {
                                assert_eq!((process, manifest), (Process::Gone, None), "{course:?} {seen:?}: {next:?}");
                            }
                            if next == Next::Copy {
                                assert_eq!(copy, None, "{seen:?}");
                            }
                        }
                    }
                }
            }
        }
    }
}
