//! Links and neighbours over rtnetlink, against real namespaces.

#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use wayleave::kernel::link::{Link, XdpMode, links};
use wayleave::kernel::neighbour::{Neighbour, NeighbourError, neighbours, resolve, resolve_all};
use wayleave::kernel::watch::{Event, Watch};
use wayleave_tests::{Mac, Namespace, attach_xdp_pass, ping, require_root_and_bpf, veth};

const ENOUGH: Duration = Duration::from_secs(3);
const OTHER_MAC: Mac = Mac([2, 0, 0, 0, 0, 0x77]);

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two namespaces joined by `eth0`, with the addresses `x.1` and `x.2` in both families.
fn pair() -> (Namespace, Namespace) {
    require_root_and_bpf().unwrap();
    let (here, there) = (Namespace::new("here").unwrap(), Namespace::new("there").unwrap());
    veth(&here, "eth0", &there, "eth0").unwrap();
    for (namespace, addresses) in [(&here, ["10.9.0.1/24", "fd09::1/64"]), (&there, ["10.9.0.2/24", "fd09::2/64"])] {
        for address in addresses {
            namespace.add_address("eth0", address).unwrap();
        }
    }
    (here, there)
}

/// Runs a future in a thread and runtime that live in the namespace.
fn run<T: Send>(namespace: &Namespace, work: impl AsyncFnOnce() -> T + Send) -> T {
    namespace
        .enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { tokio::time::timeout(2 * ENOUGH, work()).await.expect("the test hangs") })
        })
        .unwrap()
}

/// The first event that `pick` takes.
async fn wait_for<T>(watch: &mut Watch, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
    loop {
        if let Some(found) = pick(&watch.next().await.unwrap()) {
            return found;
        }
    }
}

#[test]
fn a_neighbour_that_answers_is_resolved() {
    let (here, there) = pair();
    let index = here.ifindex("eth0").unwrap();
    let mac = there.mac("eth0").unwrap();
    run(&here, async || {
        for ip in [address("10.9.0.2"), address("fd09::2")] {
            assert!(!neighbours().await.unwrap().iter().any(|one| one.ip == ip && one.usable_mac().is_some()));
            let found = resolve(index, ip, ENOUGH).await.unwrap();
            assert_eq!((found.ifindex, found.ip, found.usable_mac()), (index, ip, Some(mac.0)));
            let listed = neighbours().await.unwrap();
            assert!(listed.iter().any(|one| one.ip == ip && one.usable_mac() == Some(mac.0)), "{listed:?}");
            let again = Instant::now();
            resolve(index, ip, ENOUGH).await.unwrap();
            assert!(again.elapsed() < ENOUGH / 2, "a known neighbour is returned at once");
        }
    });
}

#[test]
fn many_neighbours_are_resolved_over_one_socket() {
    const HOSTS: u8 = 200;
    let (here, there) = pair();
    let index = here.ifindex("eth0").unwrap();
    let mac = there.mac("eth0").unwrap();
    let mut batch = String::new();
    for host in 0..HOSTS {
        writeln!(batch, "address add 10.9.1.{host}/16 dev eth0").unwrap();
    }
    there.ip_batch(&batch).unwrap();
    here.add_address("eth0", "10.9.200.1/16").unwrap();
    let wanted: Vec<(u32, IpAddr)> = (0..HOSTS).map(|host| (index, address(&format!("10.9.1.{host}")))).collect();
    let absent = [(index, address("10.9.2.1")), (index + 1000, address("10.9.2.1"))];
    run(&here, async || {
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = descriptors();
        let begun = Instant::now();
        let resolving = resolve_all(wanted.iter().chain(&absent).copied(), ENOUGH / 3);
        let most = async {
            let mut most = 0;
            while begun.elapsed() < ENOUGH / 4 {
                most = most.max(descriptors());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            most
        };
        let (found, most) = tokio::join!(resolving, most);
        let found = found.unwrap();
        assert!(begun.elapsed() >= ENOUGH / 3, "the absent one is waited for");
        assert_eq!(found.len(), usize::from(HOSTS), "all that are there, and no other");
        assert!(wanted.iter().all(|key| found.get(key) == Some(&mac.0)));
        assert!(most < before + 20, "{most} descriptors, {before} before");
        let again = Instant::now();
        resolve_all(wanted.iter().copied(), ENOUGH).await.unwrap();
        assert!(again.elapsed() < ENOUGH / 2, "known neighbours are returned at once");
    });
}

#[test]
fn an_absent_neighbour_times_out() {
    let (here, _there) = pair();
    let index = here.ifindex("eth0").unwrap();
    run(&here, async || {
        for ip in [address("10.9.0.99"), address("fd09::99")] {
            let timeout = Duration::from_millis(200);
            let started = Instant::now();
            let error = resolve(index, ip, timeout).await.unwrap_err();
            assert!(matches!(error, NeighbourError::TimedOut { state: Some(_), .. }), "{error:?}");
            assert!(started.elapsed() >= timeout && started.elapsed() < ENOUGH);
        }
    });
}

#[test]
fn a_neighbour_that_comes_late_is_asked_for_again() {
    let (here, there) = pair();
    let index = here.ifindex("eth0").unwrap();
    // So that the kernel gives up after 100 ms, and only asking again can find the latecomer.
    here.sysctl("net/ipv4/neigh/eth0/retrans_time_ms", "50").unwrap();
    here.sysctl("net/ipv4/neigh/eth0/mcast_solicit", "2").unwrap();
    let mac = there.mac("eth0").unwrap();
    std::thread::scope(|scope| {
        let resolving = scope.spawn(|| run(&here, async || resolve(index, address("10.9.0.50"), ENOUGH).await));
        let before = there.counters("eth0").unwrap().rx_packets;
        while there.counters("eth0").unwrap().rx_packets < before + 3 {
            std::thread::sleep(Duration::from_millis(5));
        }
        there.add_address("eth0", "10.9.0.50/24").unwrap();
        assert_eq!(resolving.join().unwrap().unwrap().usable_mac(), Some(mac.0));
    });
}

#[test]
fn an_interface_that_does_not_exist_is_an_error_at_once() {
    require_root_and_bpf().unwrap();
    let here = Namespace::new("alone").unwrap();
    let error = run(&here, async || resolve(4711, address("10.9.0.2"), ENOUGH).await.unwrap_err());
    assert!(matches!(error, NeighbourError::Ask { ifindex: 4711, .. }), "{error:?}");
}

#[test]
fn links_are_listed_with_mac_mtu_and_xdp() {
    let (here, _there) = pair();
    here.set_mac("eth0", OTHER_MAC).unwrap();
    here.set_mtu("eth0", 1400).unwrap();
    let index = here.ifindex("eth0").unwrap();
    let eth0 = || -> Link {
        let links = run(&here, links).unwrap();
        assert_eq!(links[0].name, "lo");
        links.into_iter().find(|link| link.name == "eth0").unwrap()
    };
    let program = attach_xdp_pass(&here, "eth0").unwrap();
    let link = eth0();
    assert_eq!((link.index, link.mac, link.mtu), (index, Some(OTHER_MAC.0), 1400));
    assert!(link.up && link.carrier);
    let xdp = link.xdp.unwrap();
    assert!(xdp.mode == XdpMode::Native && xdp.program_id.is_some(), "{xdp:?}");
    drop(program);
    here.set_up("eth0", false).unwrap();
    let link = eth0();
    assert!(!link.up && !link.carrier && link.xdp.is_none(), "{link:?}");
}

#[test]
fn watch_sees_a_link_go_down_and_go_away() {
    let (here, there) = pair();
    let index = here.ifindex("eth0").unwrap();
    run(&here, async || {
        let mut watch = Watch::open().unwrap();
        there.set_up("eth0", false).unwrap();
        let link = wait_for(&mut watch, |event| match event {
            Event::Link(link) if link.index == index && !link.carrier => Some(link.clone()),
            _ => None,
        })
        .await;
        assert!(link.up && link.name == "eth0", "only the carrier is gone: {link:?}");
        there.ip("link delete eth0").unwrap();
        wait_for(&mut watch, |event| (*event == Event::LinkGone { index }).then_some(())).await;
    });
}

#[test]
fn a_device_that_leaves_a_bridge_is_not_gone() {
    let (here, _there) = pair();
    let index = here.ifindex("eth0").unwrap();
    here.ip_batch("link add br0 type bridge\nlink set eth0 master br0\n").unwrap();
    run(&here, async || {
        let mut watch = Watch::open().unwrap();
        here.ip("link set eth0 nomaster").unwrap();
        // The last of the news, after everything that leaving the bridge set off.
        here.set_mtu("eth0", 1300).unwrap();
        wait_for(&mut watch, |event| {
            assert_ne!(*event, Event::LinkGone { index });
            matches!(event, Event::Link(link) if link.index == index && link.mtu == 1300).then_some(())
        })
        .await;
    });
}

#[test]
fn watch_sees_a_neighbour_change_its_mac_and_go_away() {
    let (here, there) = pair();
    let index = here.ifindex("eth0").unwrap();
    let ip = address("10.9.0.2");
    run(&here, async || {
        let old = resolve(index, ip, ENOUGH).await.unwrap();
        assert_ne!(old.mac, Some(OTHER_MAC.0));
        let mut watch = Watch::open().unwrap();
        there.set_mac("eth0", OTHER_MAC).unwrap();
        // The neighbour speaks first, as after a failover: its ARP request carries the new MAC.
        there.ip("neighbour flush all").unwrap();
        assert!(ping(&there, address("10.9.0.1"), ENOUGH).unwrap().is_some());
        let changed: Neighbour = wait_for(&mut watch, |event| match event {
            Event::Neighbour(news) if news.ip == ip && news.mac == Some(OTHER_MAC.0) => Some(news.clone()),
            _ => None,
        })
        .await;
        assert_eq!(changed.usable_mac(), Some(OTHER_MAC.0));
        here.ip(&format!("neighbour delete {ip} dev eth0")).unwrap();
        wait_for(&mut watch, |event| match event {
            Event::NeighbourGone { ip: gone, .. } if *gone == ip => Some(()),
            // `ip neigh delete` first makes the entry fail; the kernel frees it later.
            Event::Neighbour(news) if news.ip == ip && news.usable_mac().is_none() => Some(()),
            _ => None,
        })
        .await;
    });
}

#[test]
fn a_slow_reader_is_told_to_list_again() {
    let (here, _there) = pair();
    run(&here, async || {
        let mut watch = Watch::open_with_buffer(4096).unwrap();
        let mut lines = String::new();
        for host in 3..203 {
            writeln!(lines, "neighbour add 10.9.0.{host} lladdr {OTHER_MAC} dev eth0 nud permanent").unwrap();
        }
        here.ip_batch(&lines).unwrap();
        wait_for(&mut watch, |event| (*event == Event::Lost).then_some(())).await;
        let known = neighbours().await.unwrap().into_iter().filter(|one| one.usable_mac().is_some()).count();
        assert!(known >= 200, "{known} neighbours");
        // The watch goes on after the loss.
        let fresh = address("10.9.0.240");
        here.add_neighbour("eth0", fresh, OTHER_MAC).unwrap();
        wait_for(&mut watch, |event| matches!(event, Event::Neighbour(news) if news.ip == fresh).then_some(())).await;
    });
}
