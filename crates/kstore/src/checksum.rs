//! CRC-32C (Castagnoli, RFC 3720 appendix B.4): by the processor's instruction with the feature `disk`, else eight bytes at a
//! time.

#[cfg(not(feature = "disk"))]
const POLYNOMIAL: u32 = 0x82f6_3b78;

#[cfg(not(feature = "disk"))]
const TABLES: [[u32; 256]; 8] = tables();

#[cfg(not(feature = "disk"))]
const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ POLYNOMIAL } else { sum >> 1 };
            bit += 1;
        }
        tables[0][byte] = sum;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

/// The checksum of what `sum` is the checksum of, continued by `bytes`; 0 to begin with.
#[cfg(feature = "disk")]
pub(crate) fn crc32c(sum: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(sum, bytes)
}

/// The checksum of what `sum` is the checksum of, continued by `bytes`; 0 to begin with.
#[cfg(not(feature = "disk"))]
pub(crate) fn crc32c(sum: u32, bytes: &[u8]) -> u32 {
    let mut sum = !sum;
    let (chunks, rest) = bytes.as_chunks::<8>();
    for chunk in chunks {
        let word = u64::from_le_bytes(*chunk) ^ u64::from(sum);
        sum = 0;
        for (place, byte) in word.to_le_bytes().into_iter().enumerate() {
            sum ^= TABLES[7 - place][usize::from(byte)];
        }
    }
    for byte in rest {
        sum = (sum >> 8) ^ TABLES[0][((sum ^ u32::from(*byte)) & 0xff) as usize];
    }
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of RFC 3720, appendix B.4.
    #[test]
    fn the_vectors_of_the_standard() {
        assert_eq!(crc32c(0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(0, &[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(0, &ascending), 0x46dd_794e);
        assert_eq!(crc32c(crc32c(0, &ascending[..13]), &ascending[13..]), 0x46dd_794e);
    }
}
