//! CRC-32C (Castagnoli), which chains the records of etcd's log. RFC 3720, appendix B.4.

const POLYNOMIAL: u32 = 0x82f6_3b78; // reflected

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        #[allow(clippy::cast_possible_truncation)] // below 256
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

/// The sum of what `crc` is the sum of, followed by `bytes`; `crc` is 0 at the start.
pub(super) fn update(crc: u32, bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!crc, |crc, byte| {
        let [low, ..] = crc.to_le_bytes();
        (crc >> 8) ^ TABLE[usize::from(low ^ byte)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_rfc() {
        for (bytes, sum) in
            [(&[][..], 0), (b"123456789", 0xe306_9283), (&[0; 32], 0x8a91_36aa), (&[0xff; 32], 0x62a8_ab43)]
        {
            assert_eq!(update(0, bytes), sum, "{bytes:x?}");
        }
        assert_eq!(update(update(0, b"1234"), b"56789"), 0xe306_9283);
    }
}
