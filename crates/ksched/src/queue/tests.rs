use super::*;
use crate::{
    build::{node, pod},
    plugin::PreEnqueue,
};

fn queue() -> SchedulingQueue {
    SchedulingQueue::new([Profile::default()].into())
}

fn popped(queue: &mut SchedulingQueue, now: Instant) -> Option<String> {
    queue.pop(now).map(|queued| queued.pod.name.to_string())
}

#[tokio::test(start_paused = true)]
async fn higher_priority_goes_first_and_then_who_came_first() {
    let (mut queue, now) = (queue(), Instant::now());
    for (name, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5), ("e", -1), ("gone", 9)] {
        queue.set(Arc::new(pod(name).priority(priority).info()), now);
    }
    queue.remove("uid-gone");
    let order: Vec<_> = std::iter::from_fn(|| popped(&mut queue, now)).collect();
    assert_eq!(order, ["b", "d", "a", "c", "e"]);
    assert_eq!(queue.lengths(), QueueLengths::default());
}

#[tokio::test(start_paused = true)]
async fn an_error_backs_off_from_one_to_ten_seconds() {
    let (mut queue, mut now) = (queue(), Instant::now());
    queue.set(Arc::new(pod("a").info()), now);
    for seconds in [1, 2, 4, 8, 10, 10] {
        let queued = queue.pop(now).unwrap();
        queue.errored(queued, now);
        now += Duration::from_secs(seconds) - Duration::from_millis(1);
        assert_eq!(popped(&mut queue, now), None, "{seconds}");
        assert_eq!(queue.next_deadline(), Some(now + Duration::from_millis(1)));
        now += Duration::from_millis(1);
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_helps_wakes_a_pod() {
    let large = ClusterEvent::NodeAdded(Arc::new(node("n").resource("cpu", "8").info()));
    let small = ClusterEvent::NodeAdded(Arc::new(node("n").resource("cpu", "1").info()));
    let assigned = ClusterEvent::PodAssigned(Arc::new(pod("x").info()));
    let gone = ClusterEvent::PodGone(Arc::new(pod("x").info()));
    for (rejected_by, event, wakes) in [
        ("NodeResourcesFit", &large, true),
        ("NodeResourcesFit", &small, false),
        ("NodeResourcesFit", &gone, true),
        ("NodeResourcesFit", &assigned, false),
        ("TaintToleration", &gone, false),
        ("TaintToleration", &small, true),
        ("NodePorts", &gone, false),
        ("SomethingOfOnesOwn", &assigned, true),
    ] {
        let (mut queue, now) = (queue(), Instant::now());
        queue.set(Arc::new(pod("a").request("cpu", "4").info()), now);
        let queued = queue.pop(now).unwrap();
        queue.failed(queued, vec![rejected_by.into()], now);
        queue.happened(event, now);
        assert_eq!(queue.lengths().backoff == 1, wakes, "{rejected_by} {event:?}");
        assert_eq!(popped(&mut queue, now).is_some(), wakes, "an idle scheduler cuts the back-off short");
    }
}

/// One node wakes all that wait for room, each once and in the order of their priorities, and none of those that it does not help.
#[tokio::test(start_paused = true)]
async fn one_event_wakes_ten_thousand_pods() {
    const PODS: usize = 10_000;
    let (mut queue, now) = (queue(), Instant::now());
    for number in 0..PODS {
        let pod = pod(&format!("p{number}")).request("cpu", "4").priority(i32::try_from(number % 7).unwrap());
        queue.set(Arc::new(pod.info()), now);
        let queued = queue.pop(now).unwrap();
        // Every tenth waits for something else.
        let why = if number % 10 == 0 { "NodePorts" } else { "NodeResourcesFit" };
        queue.failed(queued, vec![why.into()], now);
    }
    let gone = ClusterEvent::PodGone(Arc::new(pod("x").info()));
    let later = now + BACKOFF_MAX;
    queue.happened(&gone, later);
    let expected =
        QueueLengths { active: PODS / 10 * 9, unschedulable: PODS / 10, ..QueueLengths::default() };
    assert_eq!(queue.lengths(), expected);
    queue.happened(&gone, later);
    assert_eq!(queue.lengths(), expected, "they are awake");
    let order: Vec<_> = std::iter::from_fn(|| queue.pop(later)).collect();
    assert_eq!(order.len(), PODS / 10 * 9);
    let number = |queued: &QueuedPod| queued.pod.name[1..].parse::<usize>().unwrap();
    assert!(order.is_sorted_by_key(|queued| (-queued.pod.priority, number(queued))));
}

/// Wants to know of new pods, if it says so, and is helped by those of the same name.
struct Twins(bool);

impl QueueingHint for Twins {
    fn name(&self) -> &str {
        "Twins"
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        Hint::queue_if(matches!(event, ClusterEvent::PodAdded(other) if other.name == pod.name))
    }

    fn wants_new_pod(&self, _: &PodInfo) -> bool {
        self.0
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_wakes_only_for_those_who_ask_for_it() {
    for (wants, rejected_by, comes, wakes) in [
        (true, "Twins", "a", true),
        (true, "Twins", "b", false),
        (false, "Twins", "a", false),
        (true, "NodeResourcesFit", "a", false),
        (true, "SomethingOfOnesOwn", "a", false),
    ] {
        let profile = Profile::builder().hint(Arc::new(Twins(wants))).build().unwrap();
        let (mut queue, now) = (SchedulingQueue::new([profile].into()), Instant::now());
        queue.set(Arc::new(pod("a").info()), now);
        let queued = queue.pop(now).unwrap();
        queue.failed(queued, vec![rejected_by.into()], now);
        queue.happened(&ClusterEvent::PodAdded(Arc::new(pod(comes).info())), now);
        assert_eq!(queue.lengths().backoff == 1, wakes, "{wants} {rejected_by} {comes}");
    }
}

/// Holds pods back until a node is there.
struct Opens(std::sync::atomic::AtomicBool);

impl PreEnqueue for Opens {
    fn name(&self) -> &str {
        "Opens"
    }

    fn pre_enqueue(&self, _: &PodInfo, _: &Groups) -> Verdict {
        match self.0.load(std::sync::atomic::Ordering::Relaxed) {
            true => Verdict::Pass,
            false => Verdict::unschedulable("closed"),
        }
    }
}

impl QueueingHint for Opens {
    fn name(&self) -> &str {
        "Opens"
    }

    fn hint(&self, _: &PodInfo, event: &ClusterEvent) -> Hint {
        Hint::queue_if(matches!(event, ClusterEvent::NodeAdded(_)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_held_back_is_asked_about_again_when_a_hint_says_so() {
    let opens = Arc::new(Opens(false.into()));
    let profile = Profile::builder().pre_enqueue(Arc::clone(&opens) as Arc<_>);
    let profile = profile.hint(Arc::clone(&opens) as Arc<_>).build().unwrap();
    let (mut queue, now) = (SchedulingQueue::new([profile].into()), Instant::now());
    assert!(queue.set(Arc::new(pod("a").info()), now).is_some());
    opens.0.store(true, std::sync::atomic::Ordering::Relaxed);
    queue.happened(&ClusterEvent::NodeRemoved(Arc::new(node("n").info())), now);
    assert_eq!(queue.lengths(), QueueLengths { gated: 1, ..QueueLengths::default() });
    queue.happened(&ClusterEvent::NodeAdded(Arc::new(node("n").info())), now);
    assert_eq!(queue.lengths(), QueueLengths { active: 1, ..QueueLengths::default() });
}

#[tokio::test(start_paused = true)]
async fn after_five_minutes_a_pod_is_tried_anyway() {
    let (mut queue, now) = (queue(), Instant::now());
    queue.set(Arc::new(pod("a").info()), now);
    let queued = queue.pop(now).unwrap();
    queue.failed(queued, vec!["NodeName".into()], now);
    let almost = now + UNSCHEDULABLE_MAX - Duration::from_millis(1);
    assert_eq!(popped(&mut queue, almost), None);
    assert_eq!(popped(&mut queue, now + UNSCHEDULABLE_MAX), Some("a".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_gated_pod_waits_for_its_last_gate() {
    let (mut queue, now) = (queue(), Instant::now());
    let held = queue.set(Arc::new(pod("a").gate("one").gate("two").info()), now);
    assert_eq!(held.unwrap().message(), "waiting for scheduling gates: [one two]");
    assert!(queue.set(Arc::new(pod("a").gate("two").info()), now).is_some());
    queue.happened(&ClusterEvent::NodeAdded(Arc::new(node("n").info())), now);
    assert_eq!(popped(&mut queue, now + UNSCHEDULABLE_MAX), None);
    assert!(queue.set(Arc::new(pod("a").info()), now).is_none());
    assert_eq!(popped(&mut queue, now), Some("a".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn the_backoff_can_be_set() {
    let seconds = Duration::from_secs;
    let (mut queue, now) = (queue().with_backoff(seconds(3), seconds(5)), Instant::now());
    queue.set(Arc::new(pod("a").info()), now);
    for expected in [3, 5, 5] {
        let queued = queue.pop(now + seconds(60)).unwrap();
        queue.errored(queued, now);
        assert_eq!(queue.next_deadline(), Some(now + seconds(expected)));
    }
}
