//! Which member of a port's `SO_REUSEPORT` group gets a connection, as a classic BPF program.
//!
//! The kernel runs the program on the first packet of a connection and takes what it returns as the place of a
//! listener in the group: `socket(7)`, `SO_ATTACH_REUSEPORT_CBPF`. A place that does not exist makes it hash as if
//! there were no program; a program that reads beyond the packet returns 0.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::libc;

/// Where the agent asks the new one from: the only client that reaches it before it is proven.
pub const PROBE_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
/// Where the agent passes on from what reached its own socket.
pub const RELAY_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 8);

/// Place of the listener that was there first. A group closes ranks: the last one takes the place of one that leaves,
/// so that this is the new one when the old one and the agent's socket are gone, and whenever the old one leaves.
pub const FIRST: u32 = 0;
/// Place of the new one where the agent's socket has left before the old one.
const SECOND: u32 = 1;
/// Place of the one that starts beside an old one and the agent's socket.
pub const NEW: u32 = 2;

/// Everybody to one place, but for some sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    exceptions: Vec<(IpAddr, u32)>,
    otherwise: u32,
}

impl Program {
    /// Everybody to `place`.
    pub const fn everybody_to(place: u32) -> Self {
        Self { exceptions: Vec::new(), otherwise: place }
    }

    /// The same, but connections from `source` to `place`. The first of several exceptions of one source counts.
    #[must_use]
    pub fn except(mut self, source: impl Into<IpAddr>, place: u32) -> Self {
        // An IPv4 client of a socket for both families sends IPv4 packets.
        self.exceptions.push((source.into().to_canonical(), place));
        self
    }

    /// While the new one is being proven: everybody to the old one but the agent's probe and the new one's connections
    /// to itself, which come from `loopback`. (With those at the old one it would meet a foreign certificate and not
    /// get ready.)
    pub fn proving(loopback: IpAddr) -> Self {
        Self::everybody_to(FIRST).except(PROBE_SOURCE, NEW).except(loopback, NEW)
    }

    /// When it is proven, and the old one is still there.
    pub fn taking_over() -> Self {
        // The moment the old one leaves the place is empty, and the kernel hashes; what then comes to the agent is
        // passed on to the one that closed ranks.
        Self::everybody_to(NEW).except(RELAY_SOURCE, FIRST)
    }

    /// When both listen, and the agent joins them as the third. Nothing comes to the agent, not even when the old one
    /// leaves and its place is the agent's; if one of them has left unseen before, what comes is passed on to the other.
    pub fn resuming() -> Self {
        Self::everybody_to(SECOND).except(RELAY_SOURCE, FIRST)
    }

    /// When there is one listener again, or only one that counts.
    pub const fn alone() -> Self {
        Self::everybody_to(FIRST)
    }

    /// The instructions: IPv4 exceptions, then those of IPv6, each block with its own end.
    pub fn instructions(&self) -> Vec<Instruction> {
        let (mut four, mut six) = (Vec::new(), Vec::new());
        for (source, place) in &self.exceptions {
            match source {
                IpAddr::V4(source) => four.extend(if_four(*source, *place)),
                IpAddr::V6(source) => six.extend(if_six(*source, *place)),
            }
        }
        let mut program = Vec::new();
        if !(four.is_empty() && six.is_empty()) {
            four.push(Instruction::give(self.otherwise));
            // The version is the upper half of the first byte in IPv4 and IPv6.
            program.push(Instruction::load_byte(0));
            program.push(Instruction::simple(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 4));
            program.push(Instruction::unless_equal(4, 0, 1));
            program.push(Instruction::skip(1));
            // One that jumps 255 at most must not have to jump over all exceptions.
            program.push(Instruction::skip(u32::try_from(four.len()).unwrap_or(u32::MAX)));
            program.extend(four);
            program.extend(six);
        }
        program.push(Instruction::give(self.otherwise));
        program
    }
}

/// Offset of the source address in an IPv4 header (RFC 791).
const SOURCE_FOUR: u32 = 12;
/// Offset of the source address in an IPv6 header (RFC 8200).
const SOURCE_SIX: u32 = 8;

fn if_four(source: Ipv4Addr, place: u32) -> [Instruction; 3] {
    [Instruction::load_word(SOURCE_FOUR), Instruction::unless_equal(source.into(), 0, 1), Instruction::give(place)]
}

fn if_six(source: Ipv6Addr, place: u32) -> Vec<Instruction> {
    let words = source.octets();
    let words = words.chunks_exact(4).map(|word| word.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)));
    let mut block = Vec::new();
    // Behind the test of a word come two instructions for each word that follows, and the end.
    for ((word, offset), behind) in words.zip((SOURCE_SIX..).step_by(4)).zip([7, 5, 3, 1]) {
        block.push(Instruction::load_word(offset));
        block.push(Instruction::unless_equal(word, 0, behind));
    }
    block.push(Instruction::give(place));
    block
}

/// One instruction; `struct sock_filter` of `linux/filter.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    code: u16,
    /// How many to skip if so, and if not.
    skip: (u8, u8),
    value: u32,
}

impl Instruction {
    const fn simple(code: u32, value: u32) -> Self {
        Self::jump(code, value, (0, 0))
    }

    const fn jump(code: u32, value: u32, skip: (u8, u8)) -> Self {
        // Every code is a sum of constants below 0x100.
        #[expect(clippy::cast_possible_truncation)]
        Self { code: code as u16, skip, value }
    }

    /// The word at `offset` of the IP header.
    const fn load_word(offset: u32) -> Self {
        Self::simple(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, NETWORK_HEADER.wrapping_add(offset))
    }

    /// The byte at `offset` of the IP header.
    const fn load_byte(offset: u32) -> Self {
        Self::simple(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, NETWORK_HEADER.wrapping_add(offset))
    }

    const fn unless_equal(value: u32, same: u8, other: u8) -> Self {
        Self::jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, (same, other))
    }

    const fn skip(count: u32) -> Self {
        Self::simple(libc::BPF_JMP | libc::BPF_JA, count)
    }

    const fn give(place: u32) -> Self {
        Self::simple(libc::BPF_RET | libc::BPF_K, place)
    }

    /// As the kernel takes it.
    pub(super) const fn raw(self) -> libc::sock_filter {
        libc::sock_filter { code: self.code, jt: self.skip.0, jf: self.skip.1, k: self.value }
    }
}

/// `SKF_NET_OFF` of `linux/filter.h`: offsets from here are offsets in the IP header, wherever the packet starts.
const NETWORK_HEADER: u32 = libc::SKF_NET_OFF.cast_unsigned();

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(source: IpAddr) -> Vec<u8> {
        match source {
            IpAddr::V4(source) => {
                let mut header = vec![0x45; 12];
                header.extend(source.octets());
                header.extend([127, 0, 0, 1]);
                header
            }
            IpAddr::V6(source) => {
                let mut header = vec![0x60; 8];
                header.extend(source.octets());
                header.extend(Ipv6Addr::LOCALHOST.octets());
                header
            }
        }
    }

    /// What a kernel does with it.
    fn interpret(program: &[Instruction], packet: &[u8]) -> u32 {
        let (mut at, mut accumulator) = (0, 0_u32);
        loop {
            let Instruction { code, skip, value } = program[at];
            at += 1;
            let start = value.wrapping_sub(NETWORK_HEADER) as usize;
            match code {
                0x20 => accumulator = u32::from_be_bytes(packet[start..start + 4].try_into().unwrap()),
                0x30 => accumulator = packet[start].into(),
                0x74 => accumulator >>= value,
                0x15 => at += usize::from(if accumulator == value { skip.0 } else { skip.1 }),
                0x05 => at += value as usize,
                0x06 => return value,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn everybody_is_one_instruction() {
        let expected = [Instruction { code: 0x06, skip: (0, 0), value: 7 }];
        assert_eq!(Program::everybody_to(7).instructions(), expected);
    }

    #[test]
    fn an_exception_of_ipv4_in_full() {
        let instruction = |code, skip, value| Instruction { code, skip, value };
        let expected = [
            instruction(0x30, (0, 0), 0xfff0_0000),
            instruction(0x74, (0, 0), 4),
            instruction(0x15, (0, 1), 4),
            instruction(0x05, (0, 0), 1),
            instruction(0x05, (0, 0), 4),
            instruction(0x20, (0, 0), 0xfff0_000c),
            instruction(0x15, (0, 1), 0x7f00_0009),
            instruction(0x06, (0, 0), 2),
            instruction(0x06, (0, 0), 0),
            instruction(0x06, (0, 0), 0),
        ];
        assert_eq!(Program::everybody_to(FIRST).except(PROBE_SOURCE, NEW).instructions(), expected);
    }

    #[test]
    fn who_goes_where() {
        let six: IpAddr = "::1".parse().unwrap();
        let mixed = Program::everybody_to(5).except([127, 0, 0, 1], 1).except(six, 2).except([10, 0, 0, 1], 3);
        let mixed = mixed.except("2001:db8:1:2:3:4:5:6".parse::<IpAddr>().unwrap(), 4);
        let mapped = Program::everybody_to(0).except("::ffff:192.0.2.1".parse::<IpAddr>().unwrap(), 1);
        let first_counts = Program::everybody_to(0).except(six, 1).except(six, 2);
        let proving = Program::proving(six);
        let without_six = Program::proving(Ipv4Addr::LOCALHOST.into());
        let cases = [
            (&mixed, "127.0.0.1", 1),
            (&mixed, "127.0.0.2", 5),
            (&mixed, "10.0.0.1", 3),
            (&mixed, "::1", 2),
            (&mixed, "::2", 5),
            (&mixed, "2001:db8:1:2:3:4:5:6", 4),
            (&mixed, "2001:db8:1:2:3:4:5:7", 5),
            (&mixed, "2001:db9:1:2:3:4:5:6", 5),
            (&mapped, "192.0.2.1", 1),
            (&mapped, "::ffff:192.0.2.1", 0),
            (&first_counts, "::1", 1),
            (&proving, "127.0.0.9", NEW),
            (&proving, "::1", NEW),
            (&proving, "127.0.0.1", FIRST),
            (&proving, "192.0.2.1", FIRST),
            (&proving, "127.0.0.8", FIRST),
            (&without_six, "127.0.0.1", NEW),
            (&without_six, "::1", FIRST),
            (&Program::taking_over(), "192.0.2.1", NEW),
            (&Program::taking_over(), "127.0.0.8", FIRST),
            (&Program::resuming(), "192.0.2.1", SECOND),
            (&Program::resuming(), "127.0.0.8", FIRST),
            (&Program::alone(), "127.0.0.9", FIRST),
        ];
        for (program, source, expected) in cases {
            let place = interpret(&program.instructions(), &packet(source.parse().unwrap()));
            assert_eq!(place, expected, "{source} by {program:?}");
        }
    }

    #[test]
    fn more_exceptions_than_a_jump_reaches() {
        let mut program = Program::everybody_to(0);
        for last in 0..=255 {
            program = program.except([10, 0, 0, last], u32::from(last) + 1);
        }
        program = program.except(Ipv6Addr::LOCALHOST, 999);
        let instructions = program.instructions();
        assert_eq!(interpret(&instructions, &packet([10, 0, 0, 255].into())), 256);
        assert_eq!(interpret(&instructions, &packet([10, 0, 1, 0].into())), 0);
        assert_eq!(interpret(&instructions, &packet(Ipv6Addr::LOCALHOST.into())), 999);
    }
}
