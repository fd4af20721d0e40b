//! Whether a point is on its curve: y² = x³ - 3x + b. It is only asked to say why a signature is none, so that it is written
//! to be short, not to be fast or to keep secrets.

/// A number, its lowest digits first.
type Number = Vec<u32>;

struct Curve {
    name: &'static str,
    id: &'static [u8],
    bytes: usize,
    prime: &'static str,
    b: &'static str,
}

const CURVES: [Curve; 4] = [
    Curve {
        name: "P224",
        id: &[0x2b, 0x81, 0x04, 0x00, 0x21],
        bytes: 28,
        prime: "ffffffffffffffffffffffffffffffff000000000000000000000001",
        b: "b4050a850c04b3abf54132565044b0b7d7bfd8ba270b39432355ffb4",
    },
    Curve {
        name: "P256",
        id: &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
        bytes: 32,
        prime: "ffffffff00000001000000000000000000000000ffffffffffffffffffffffff",
        b: "5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b",
    },
    Curve {
        name: "P384",
        id: &[0x2b, 0x81, 0x04, 0x00, 0x22],
        bytes: 48,
        prime: "fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffeffffffff0000000000000000ffffffff",
        b: "b3312fa7e23ee7e4988e056be3f82d19181d9c6efe8141120314088f5013875ac656398d8a2ed19d2a85c8edd3ec2aef",
    },
    Curve {
        name: "P521",
        id: &[0x2b, 0x81, 0x04, 0x00, 0x23],
        bytes: 66,
        prime: "01ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        b: "0051953eb9618e1c9a1f929a21a0b68540eea2da725b99b315f3b8b489918ef109e156193951ec7e937b1652c0bd3bb1bf073573df883d2c34f1ef451fd46b503f00",
    },
];

/// What is wrong with a point of a curve, in the words of Go's `crypto/ecdsa`.
pub(crate) fn point_fault(curve: &[u8], point: &[u8]) -> Option<String> {
    let curve = CURVES.iter().find(|known| known.id == curve)?;
    let Some(coordinates) = point.strip_prefix(&[4]).filter(|rest| rest.len() == curve.bytes * 2) else {
        return Some("ecdsa: invalid uncompressed public key".to_owned());
    };
    let (x, y) = coordinates.split_at(curve.bytes);
    let (x, y, prime) = (number(x), number(y), hexadecimal(curve.prime));
    if !less(&x, &prime) || !less(&y, &prime) {
        return Some(format!("invalid {} element encoding", curve.name));
    }
    // y² + 3x = x³ + b
    let square = multiplied(&y, &y, &prime);
    let left = added(&square, &multiplied(&x, &[3], &prime), &prime);
    let cube = multiplied(&multiplied(&x, &x, &prime), &x, &prime);
    let right = added(&cube, &hexadecimal(curve.b), &prime);
    (left != right).then(|| format!("{} point not on curve", curve.name))
}

/// From bytes, the highest first.
fn number(bytes: &[u8]) -> Number {
    let digits =
        bytes.rchunks(4).map(|chunk| chunk.iter().fold(0, |digit, byte| digit << 8 | u32::from(*byte)));
    trimmed(digits.collect())
}

fn hexadecimal(text: &str) -> Number {
    let digit = |letter: u8| char::from(letter).to_digit(16).unwrap_or(0);
    let digits = text.as_bytes().rchunks(8);
    trimmed(digits.map(|chunk| chunk.iter().fold(0, |number, letter| number << 4 | digit(*letter))).collect())
}

fn trimmed(mut number: Number) -> Number {
    while number.last() == Some(&0) {
        number.pop();
    }
    number
}

fn less(one: &[u32], other: &[u32]) -> bool {
    one.len() < other.len() || one.len() == other.len() && one.iter().rev().lt(other.iter().rev())
}

/// `one - other`, which is not greater.
fn subtract(one: &mut Number, other: &[u32]) {
    let mut borrow = false;
    for (index, digit) in one.iter_mut().enumerate() {
        let (less, first) = digit.overflowing_sub(other.get(index).copied().unwrap_or(0));
        let (less, second) = less.overflowing_sub(u32::from(borrow));
        (*digit, borrow) = (less, first || second);
    }
    while one.last() == Some(&0) {
        one.pop();
    }
}

/// The remainder, bit by bit.
fn reduced(number: &[u32], prime: &[u32]) -> Number {
    let mut rest = Number::new();
    for digit in number.iter().rev() {
        for bit in (0..32).rev() {
            let mut carry = digit >> bit & 1;
            for digit in &mut rest {
                (*digit, carry) = (*digit << 1 | carry, *digit >> 31);
            }
            if carry > 0 {
                rest.push(carry);
            }
            if !less(&rest, prime) {
                subtract(&mut rest, prime);
            }
        }
    }
    rest
}

fn multiplied(one: &[u32], other: &[u32], prime: &[u32]) -> Number {
    let mut product = vec![0; one.len() + other.len()];
    for (at, digit) in one.iter().enumerate() {
        let mut carry = 0_u64;
        for (index, other) in other.iter().enumerate() {
            let sum = u64::from(*digit) * u64::from(*other) + u64::from(product[at + index]) + carry;
            product[at + index] = sum as u32;
            carry = sum >> 32;
        }
        product[at + other.len()] = carry as u32;
    }
    reduced(&product, prime)
}

fn added(one: &[u32], other: &[u32], prime: &[u32]) -> Number {
    let mut sum = Number::new();
    let mut carry = 0_u64;
    for index in 0..one.len().max(other.len()) {
        let digit = |number: &[u32]| u64::from(number.get(index).copied().unwrap_or(0));
        carry += digit(one) + digit(other);
        sum.push(carry as u32);
        carry >>= 32;
    }
    sum.push(carry as u32);
    reduced(&sum, prime)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected results: the base points of FIPS 186-4, D.1.2, are on their curves.
    #[test]
    fn base_points_are_on_their_curves() {
        for (curve, x, y) in [
            (
                0,
                "b70e0cbd6bb4bf7f321390b94a03c1d356c21122343280d6115c1d21",
                "bd376388b5f723fb4c22dfe6cd4375a05a07476444d5819985007e34",
            ),
            (
                1,
                "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296",
                "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5",
            ),
            (
                2,
                "aa87ca22be8b05378eb1c71ef320ad746e1d3b628ba79b9859f741e082542a385502f25dbf55296c3a545e3872760ab7",
                "3617de4a96262c6f5d9e98bf9292dc29f8f41dbd289a147ce9da3113b5f0b8c00a60b1ce1d7e819d7a431d7c90ea0e5f",
            ),
            (
                3,
                "00c6858e06b70404e9cd9e3ecb662395b4429c648139053fb521f828af606b4d3dbaa14b5e77efe75928fe1dc127a2ffa8de3348b3c1856a429bf97e7e31c2e5bd66",
                "011839296a789a3bc0045c8a5fb42c7d1bd998f54449579b446817afbd17273e662c97ee72995ef42640c550b9013fad0761353c7086a272c24088be94769fd16650",
            ),
        ] {
            let curve = &CURVES[curve];
            let bytes = |text: &str| -> Vec<u8> {
                (0..text.len() / 2)
                    .map(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).unwrap())
                    .collect()
            };
            let mut point = [vec![4], bytes(x), bytes(y)].concat();
            assert_eq!(point_fault(curve.id, &point), None, "{}", curve.name);
            let last = point.len() - 1;
            point[last] ^= 1;
            assert_eq!(point_fault(curve.id, &point), Some(format!("{} point not on curve", curve.name)));
            assert_eq!(point_fault(curve.id, &point[1..]).unwrap(), "ecdsa: invalid uncompressed public key");
        }
    }
}
