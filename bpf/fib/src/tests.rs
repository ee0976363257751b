//! Parsing, verdicts and rewriting, packet by packet.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use crate::packet::{ETHERNET_BYTES, Packet, Parsed, Tags, forward, link};
use crate::{Neighbour, Reach, Reason};

/// Link layer and IP headers of a whole frame.
fn parse(frame: &[u8]) -> Result<Parsed, Reason> {
    let link = link(frame)?;
    if link.tags.outer != 0 {
        return Err(Reason::Vlan);
    }
    crate::packet::parse(&frame.after(link.tag_bytes), link.ethertype)
}

/// An Ethernet header to a unicast address.
fn ethernet(ethertype: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame
}

/// IPv4 with `options` (a multiple of four bytes) and `payload`; the checksum is right.
fn ipv4(dst: [u8; 4], protocol: u8, fragment: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header_bytes = 20 + options.len();
    let mut header = vec![0x40 | u8::try_from(header_bytes / 4).unwrap(), 0];
    header.extend(u16::try_from(header_bytes + payload.len()).unwrap().to_be_bytes());
    header.extend([0, 7]);
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0, 192, 0, 2, 1]);
    header.extend(dst);
    header.extend(options);
    let checksum = checksum(&header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = ethernet(0x0800);
    frame.extend(header);
    frame.extend(payload);
    frame
}

/// IPv6 with `next` as the first next header.
fn ipv6(dst: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(0x86dd);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend([next, 64]);
    frame.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    frame.extend(dst);
    frame.extend(payload);
    frame
}

/// RFC 1071 over a header whose checksum field is zero.
fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 =
        header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const PORTS: [u8; 8] = [0x12, 0x34, 0x01, 0xbb, 0, 8, 0, 0];
const TO: [u8; 4] = [198, 51, 100, 7];
const TO_6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];

#[test]
fn headers_are_read_or_refused_with_the_reason() {
    let check = |what: &str, frame: &[u8], expected: Result<(u8, u32), Reason>| {
        let got = parse(frame).map(|parsed| (parsed.flow.protocol, parsed.flow.ports));
        assert_eq!(got, expected, "{what}");
    };
    let ports = 0x1234_01bb;
    check("UDP", &ipv4(TO, UDP, 0, &[], &PORTS), Ok((UDP, ports)));
    check("don't fragment", &ipv4(TO, UDP, 0x4000, &[], &PORTS), Ok((UDP, ports)));
    check("options", &ipv4(TO, TCP, 0, &[1; 40], &PORTS), Ok((TCP, ports)));
    check("first fragment", &ipv4(TO, UDP, 0x2000, &[], &PORTS), Ok((UDP, 0)));
    check("later fragment", &ipv4(TO, UDP, 0x0003, &[], &PORTS), Ok((UDP, 0)));
    check("ICMP has no ports", &ipv4(TO, 1, 0, &[], &PORTS), Ok((1, 0)));
    check("three bytes of ports are none", &ipv4(TO, UDP, 0, &[], &PORTS[..3]), Ok((UDP, 0)));
    check("padded to the least frame", &[ipv4(TO, UDP, 0, &[], &PORTS), vec![0; 18]].concat(), Ok((UDP, ports)));
    check("IPv6", &ipv6(TO_6, UDP, &PORTS), Ok((UDP, ports)));
    check("destination options", &ipv6(TO_6, 60, &[&[UDP, 0][..], &[0; 6], &PORTS].concat()), Ok((UDP, ports)));
    check(
        "routing header of two units",
        &ipv6(TO_6, 43, &[&[TCP, 1][..], &[0; 14], &PORTS].concat()),
        Ok((TCP, ports)),
    );
    check("authentication header", &ipv6(TO_6, 51, &[&[UDP, 4][..], &[0; 22], &PORTS].concat()), Ok((UDP, ports)));
    check("IPv6 fragment", &ipv6(TO_6, 44, &[&[UDP, 0][..], &[0; 6], &PORTS].concat()), Ok((UDP, 0)));
    let chain = |headers: usize| -> Vec<u8> {
        let next = |at: usize| if at + 1 == headers { UDP } else { 60 };
        (0..headers).flat_map(|at| [next(at), 0, 0, 0, 0, 0, 0, 0]).chain(PORTS).collect()
    };
    check("as many headers as are followed", &ipv6(TO_6, 60, &chain(6)), Ok((UDP, ports)));
    check("more headers than are followed", &ipv6(TO_6, 60, &chain(7)), Ok((60, 0)));
    check("hop-by-hop options", &ipv6(TO_6, 0, &[&[UDP, 0][..], &[0; 6], &PORTS].concat()), Err(Reason::HopByHop));
    check("an extension header past the end", &ipv6(TO_6, 60, &[UDP, 9, 0, 0, 0, 0, 0, 0]), Err(Reason::Malformed));
    let padded = [ipv6(TO_6, 44, &[UDP, 0, 0, 0]), vec![0; 20]].concat();
    check("half a fragment header before padding", &padded, Err(Reason::Malformed));

    check("nothing", &[], Err(Reason::Malformed));
    check("half an Ethernet header", &ethernet(0x0800)[..13], Err(Reason::Malformed));
    check("no IP header", &ethernet(0x0800), Err(Reason::Malformed));
    check("IPv4 cut short", &ipv4(TO, UDP, 0, &[], &PORTS)[..41], Err(Reason::Malformed));
    check("IPv6 cut short", &ipv6(TO_6, UDP, &PORTS)[..61], Err(Reason::Malformed));
    for (what, at, byte) in [("IPv4 of version 6", 14, 0x65), ("a header of 16 bytes", 14, 0x44), ("no length", 17, 0)]
    {
        let mut frame = ipv4(TO, UDP, 0, &[], &PORTS);
        frame[at] = byte;
        check(what, &frame, Err(Reason::Malformed));
    }
    let mut frame = ipv6(TO_6, UDP, &PORTS);
    frame[14] = 0x45;
    check("IPv6 of version 4", &frame, Err(Reason::Malformed));

    check("ARP", &[ethernet(0x0806), vec![0; 28]].concat(), Err(Reason::NotIp));
    check("half a tag", &ethernet(0x8100), Err(Reason::Malformed));
    check("one tag", &tagged(&[0x8100_0064], &ipv4(TO, UDP, 0, &[], &PORTS)), Err(Reason::Vlan));
    let mut frame = ipv4(TO, UDP, 0, &[], &PORTS);
    frame[0] = 0xff;
    check("link broadcast", &frame, Err(Reason::LinkNotOurs));
    for dst in [[0, 0, 0, 1], [127, 0, 0, 1], [169, 254, 1, 1], [224, 0, 0, 5], [239, 1, 1, 1], [255; 4]] {
        check("IPv4 that never leaves the link", &ipv4(dst, UDP, 0, &[], &PORTS), Err(Reason::NotForwardable));
    }
    for src in [[0, 0, 0, 1], [127, 0, 0, 1], [169, 254, 1, 1], [224, 0, 0, 5], [255; 4]] {
        let mut frame = ipv4(TO, UDP, 0, &[], &PORTS);
        frame[26..30].copy_from_slice(&src);
        check("an IPv4 source that never leaves the link", &frame, Err(Reason::NotForwardable));
    }
    let six = |first: [u8; 2], last: u8| {
        let mut dst = [0; 16];
        dst[..2].copy_from_slice(&first);
        dst[15] = last;
        dst
    };
    for dst in [six([0, 0], 0), six([0, 0], 1), six([0xff, 2], 1), six([0xfe, 0x80], 1), six([0xfe, 0xbf], 1)] {
        check("IPv6 that never leaves the link", &ipv6(dst, UDP, &PORTS), Err(Reason::NotForwardable));
    }
    check("a unique local address", &ipv6(six([0xfd, 0x77], 2), UDP, &PORTS), Ok((UDP, ports)));
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
    check("an IPv4-mapped destination", &ipv6(mapped, UDP, &PORTS), Err(Reason::NotForwardable));
    for src in [six([0, 0], 0), six([0, 0], 1), six([0xff, 2], 1), six([0xfe, 0x80], 1), mapped] {
        let mut frame = ipv6(TO_6, UDP, &PORTS);
        frame[22..38].copy_from_slice(&src);
        check("an IPv6 source that never leaves the link", &frame, Err(Reason::NotForwardable));
    }
}

const NEIGHBOUR: Neighbour = Neighbour {
    destination: 0x0605_0403_0201,
    source: 0x0c0b_0a09_0807,
    mtu: 1500,
    tags: Tags { outer: 0, inner: 0 },
    one_buffer: false,
};

#[test]
fn a_neighbour_survives_its_words() {
    let tags = Tags { outer: 0x88a8_00c8, inner: 0x8100_0064 };
    for reach in [
        Reach::Up(NEIGHBOUR),
        Reach::Up(Neighbour { tags, one_buffer: true, ..NEIGHBOUR }),
        Reach::Up(Neighbour::default()),
        Reach::Down,
        Reach::Unknown,
    ] {
        assert_eq!(Reach::decode(reach.encode()), reach);
    }
    assert_eq!(Reach::decode([0; 4]), Reach::Unknown, "an entry that was never written");
}

#[test]
fn tags_are_read_and_replaced() {
    let plain = ipv4(TO, UDP, 0, &[], &PORTS);
    let (c, s) = (0x8100_0064, 0x88a8_00c8);
    let check = |what: &str, frame: &[u8], expected: Result<(Tags, u32), Reason>| {
        assert_eq!(link(frame).map(|link| (link.tags, link.tag_bytes)), expected, "{what}");
    };
    check("none", &plain, Ok((Tags::default(), 0)));
    check("one", &tagged(&[c], &plain), Ok((Tags { outer: c, inner: 0 }, 4)));
    check("two", &tagged(&[s, c], &plain), Ok((Tags { outer: s, inner: c }, 8)));
    check("three", &tagged(&[s, c, c], &plain), Err(Reason::Vlan));
    check("cut within the second", &tagged(&[s, c], &plain)[..18], Err(Reason::Malformed));
    assert_eq!(Tags { outer: 0x88a8_60c8, inner: 0x8100_f064 }.vids(), 0x00c8_0064, "priority is not identity");

    let mut frame = tagged(&[c], &plain);
    let other = Neighbour { tags: Tags { outer: 0x8100_0065, inner: 0 }, ..NEIGHBOUR };
    forward(&mut frame[..], &other).unwrap();
    let mut expected = plain;
    forward(&mut expected[..], &NEIGHBOUR).unwrap();
    assert_eq!(frame, tagged(&[0x8100_0065], &expected));
}

/// The frame with tags put in, outermost first.
fn tagged(tags: &[u32], frame: &[u8]) -> Vec<u8> {
    let mut out = frame[..12].to_vec();
    out.extend(tags.iter().flat_map(|tag| tag.to_be_bytes()));
    out.extend(&frame[12..]);
    out
}

#[test]
fn reasons_are_numbered_from_zero_without_gaps() {
    for (number, reason) in Reason::ALL.iter().enumerate() {
        assert_eq!(*reason as usize, number, "{}", reason.name());
    }
    assert!(Reason::ALL.len() <= crate::verdict::REASONS_MAX as usize);
}

proptest! {
    #[test]
    fn forwarding_keeps_the_checksum_right(id in any::<u16>(), ttl in 2u8.., tos in any::<u8>(), dst in any::<[u8; 4]>()) {
        let mut frame = ipv4(dst, UDP, 0, &[], &PORTS);
        frame[15] = tos;
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        frame[22] = ttl;
        frame[24..26].fill(0);
        let before = checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&before.to_be_bytes());
        forward(&mut frame[..], &NEIGHBOUR).unwrap();
        prop_assert_eq!(&frame[..12], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        prop_assert_eq!(frame[22], ttl - 1);
        let written = u16::from_be_bytes([frame[24], frame[25]]);
        frame[24..26].fill(0);
        let right = checksum(&frame[14..34]);
        // In one's complement 0x0000 and 0xffff are the same number.
        prop_assert!(written == right || (written.is_multiple_of(0xffff) && right.is_multiple_of(0xffff)), "{written:04x} {right:04x}");
    }

    #[test]
    fn no_bytes_make_it_panic(mut frame in prop::collection::vec(any::<u8>(), 0..200), ethertype in 0usize..3) {
        if let Some(at) = frame.get_mut(12..14) {
            at.copy_from_slice(&[[0x08, 0x00], [0x86, 0xdd], [0x81, 0x00]][ethertype]);
        }
        if let Ok(parsed) = parse(&frame[..]) {
            prop_assert_eq!((parsed.ip_bytes + ETHERNET_BYTES) as usize, frame.len());
            prop_assert!(parsed.header_bytes <= parsed.ip_bytes);
            prop_assert!(forward(&mut frame[..], &NEIGHBOUR).is_some());
        }
    }

    #[test]
    fn no_image_makes_a_lookup_panic(image in prop::collection::vec(any::<u8>(), 0..2000), address in any::<u128>()) {
        let _ = crate::lookup::v4(&image[..], address as u32);
        let _ = crate::lookup::v6(&image[..], (address >> 64) as u64, address as u64);
    }
}
