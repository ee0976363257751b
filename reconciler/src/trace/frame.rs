//! A frame in user space that can grow and shrink at its front, as the kernel's frames can.

use fib::packet::{Packet, PacketMut};

/// The bytes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(Vec<u8>);

impl Frame {
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Packet for Frame {
    fn length(&self) -> u32 {
        self.0.as_slice().length()
    }
    fn be16(&self, at: u32) -> Option<u16> {
        self.0.as_slice().be16(at)
    }
    fn be32(&self, at: u32) -> Option<u32> {
        self.0.as_slice().be32(at)
    }
    fn first_le64(&self) -> Option<u64> {
        self.0.as_slice().first_le64()
    }
    fn after(&self, bytes: u32) -> impl Packet {
        self.0.get(bytes as usize..).unwrap_or_default()
    }
    fn again(&self) -> impl Packet {
        self.0.as_slice()
    }
}

impl PacketMut for Frame {
    fn set_be16(&mut self, at: u32, value: u16) -> Option<()> {
        self.0.as_mut_slice().set_be16(at, value)
    }
    fn set_be32(&mut self, at: u32, value: u32) -> Option<()> {
        self.0.as_mut_slice().set_be32(at, value)
    }
    fn set_macs(&mut self, destination: u64, source: u64) -> Option<()> {
        self.0.as_mut_slice().set_macs(destination, source)
    }
    fn move_head(&mut self, bytes: i32) -> Option<()> {
        let count = bytes.unsigned_abs() as usize;
        if bytes >= 0 {
            if count > self.0.len() {
                return None;
            }
            self.0.drain(..count);
        } else {
            self.0.splice(..0, std::iter::repeat_n(0, count));
        }
        Some(())
    }
    fn shorten(&mut self, bytes: u32) -> Option<()> {
        if bytes as usize > self.0.len() {
            return None;
        }
        self.0.truncate(bytes as usize);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use fib::Neighbour;
    use fib::packet::{Tags, forward, link};

    use super::Frame;

    #[test]
    fn tags_come_and_go_and_the_packet_stays() {
        let mut plain = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 59, 64];
        plain.resize(54, 0xaa);
        let neighbour =
            |outer, inner| Neighbour { destination: 2, source: 4, tags: Tags { outer, inner }, ..Neighbour::default() };
        let tags = [(0, 0), (0x8100_0064, 0), (0x88a8_00c8, 0x8100_0064)];
        let mut reference = Frame::new(&plain);
        forward(&mut reference, &neighbour(0, 0)).expect("there is room");
        for (outer, inner) in tags {
            let mut first = Frame::new(&plain);
            forward(&mut first, &neighbour(outer, inner)).expect("there is room");
            let read = link(&first).expect("a whole frame");
            assert_eq!(read.tags, Tags { outer, inner });
            assert_eq!(first.bytes()[14 + read.tag_bytes as usize..], reference.bytes()[14..]);
            for (outer, inner) in tags {
                let mut second = first.clone();
                forward(&mut second, &neighbour(outer, inner)).expect("there is room");
                let again = link(&second).expect("a whole frame");
                assert_eq!((again.tags, again.ethertype), (Tags { outer, inner }, 0x86dd));
                assert_eq!(second.bytes().len(), plain.len() + again.tag_bytes as usize);
            }
        }
    }
}
