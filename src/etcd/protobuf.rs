//! The wire format of Protocol Buffers, as much of it as etcd's log needs: which fields are there, and their bytes.
//!
//! <https://protobuf.dev/programming-guides/encoding/>

/// The bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A number.
    Varint(u64),
    /// A string, bytes or a message.
    Bytes(&'a [u8]),
    /// Four or eight bytes, of which nobody here has a use.
    Fixed,
}

impl<'a> Value<'a> {
    /// The number, where it is one.
    pub(super) fn varint(self) -> Option<u64> {
        match self {
            Self::Varint(number) => Some(number),
            Self::Bytes(_) | Self::Fixed => None,
        }
    }

    /// The bytes, where they are some.
    pub(super) fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Varint(_) | Self::Fixed => None,
        }
    }
}

/// The fields of `message` with their numbers, in the order of the bytes. After [`Malformed`] comes nothing.
pub(super) fn fields(message: &[u8]) -> impl Iterator<Item = Result<(u64, Value<'_>), Malformed>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = field(&mut rest);
        if field.is_none() {
            rest = &[];
        }
        Some(field.ok_or(Malformed))
    })
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let tag = varint(rest)?;
    let value = match tag & 7 {
        0 => Value::Varint(varint(rest)?),
        1 => take(rest, 8).map(|_| Value::Fixed)?,
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            Value::Bytes(take(rest, length)?)
        }
        5 => take(rest, 4).map(|_| Value::Fixed)?,
        _ => return None,
    };
    let number = tag >> 3;
    (number != 0).then_some((number, value))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(message: &[u8]) -> Result<Vec<(u64, Value<'_>)>, Malformed> {
        fields(message).collect()
    }

    #[test]
    fn fields_are_numbered_values() {
        for (message, expected) in [
            (&[][..], Ok(vec![])),
            (&[0x08, 0x96, 0x01], Ok(vec![(1, Value::Varint(150))])),
            (&[0x12, 2, b'h', b'i'], Ok(vec![(2, Value::Bytes(b"hi"))])),
            (&[0x12, 0, 0x1d, 1, 2, 3, 4], Ok(vec![(2, Value::Bytes(b"")), (3, Value::Fixed)])),
            (&[0x21, 1, 2, 3, 4, 5, 6, 7, 8], Ok(vec![(4, Value::Fixed)])),
            // 1300, as far as numbers go in etcd's log.
            (&[0xa2, 0x51, 0], Ok(vec![(1300, Value::Bytes(b""))])),
            (
                &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
                Ok(vec![(1, Value::Varint(u64::MAX))]),
            ),
        ] {
            assert_eq!(all(message), expected, "{message:x?}");
        }
    }

    #[test]
    fn what_is_no_message_is_said_to_be_none() {
        for message in [
            &[0x08][..],                                                               // a number that is not there
            &[0x08, 0x80],                                                             // and one without its end
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],       // more than 64 bits
            &[0x12, 3, b'h', b'i'],                                                    // fewer bytes than promised
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, b'x'], // far fewer
            &[0x0b],                                                                   // a group
            &[0x00, 0x00],                                                             // there is no field 0
            &[0x21, 1, 2],
        ] {
            assert_eq!(all(message), Err(Malformed), "{message:x?}");
        }
    }
}
