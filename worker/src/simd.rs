//! Which instructions the kernels may use, and the small arithmetic that all of them share.
//!
//! Every kernel is written once in portable Rust and may be compiled a second time for AVX2 or NEON. All give the same
//! bits: the order of every sum is spelled out by fixed lanes, no multiplication is fused with an addition, and the
//! exponential is [our own](crate::exponential).

/// The instruction set that a kernel runs on; it changes speed, never a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simd {
    /// What the target guarantees.
    Portable,
    /// AVX2, FMA and F16C, found when the backend was made.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX-512 F, BW and VNNI besides.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// NEON, which all 64-bit Arm processors have.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    /// Dot products of bytes besides: Apple's processors and all of Arm's since 2018.
    #[cfg(target_arch = "aarch64")]
    Dotprod(Dotprod),
}

/// Proof that this processor has AVX2, FMA and F16C; only [`Simd::available`] makes one.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

/// Proof that this processor has AVX-512 F, BW and VNNI, and what [`Avx2`] is a proof of; only [`Simd::available`] makes
/// one.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512(());

/// Proof that this processor has NEON; only [`Simd::available`] makes one.
#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neon(());

/// Proof that this processor has NEON and its dot products of bytes; only [`Simd::available`] makes one.
#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dotprod(());

impl Simd {
    /// All that this processor has, the slowest first.
    pub fn available() -> Vec<Simd> {
        #[cfg_attr(
            not(any(target_arch = "x86_64", target_arch = "aarch64")),
            expect(unused_mut, reason = "other processors have more")
        )]
        let mut all = vec![Simd::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                all.push(Simd::Avx2(Avx2(())));
                if has!("avx512f") && has!("avx512bw") && has!("avx512vnni") {
                    all.push(Simd::Avx512(Avx512(())));
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected as has;
            if has!("neon") {
                all.push(Simd::Neon(Neon(())));
                if has!("dotprod") {
                    all.push(Simd::Dotprod(Dotprod(())));
                }
            }
        }
        all
    }

    /// The best that this processor has.
    pub fn detect() -> Simd {
        Simd::available().pop().unwrap_or(Simd::Portable)
    }
}

/// Defines a kernel that is compiled for every [`Simd`] level from one body.
///
/// The first argument, of type [`Simd`], chooses; the body does not see it. A body that is given a name in angle
/// brackets gets the level's [`Vector`] type under it.
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($args:tt)*) $($rest:tt)*) => {
        $crate::simd::kernel! { $(#[$meta])* $vis fn $name<V>($($args)*) $($rest)* }
    };
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$vector:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(simd: $crate::simd::Simd, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$vector: $crate::simd::Vector>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,f16c")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                body::<$crate::simd::Avx2Vector>($($arg),*)
            }

            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            fn neon($($arg: $ty),*) $(-> $ret)? {
                body::<$crate::simd::NeonVector>($($arg),*)
            }

            match simd {
                $crate::simd::Simd::Portable => body::<$crate::simd::PortableVector>($($arg),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: these exist only where detection found AVX2 and F16C.
                $crate::simd::Simd::Avx2(_) | $crate::simd::Simd::Avx512(_) => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: these exist only where detection found NEON.
                $crate::simd::Simd::Neon(_) | $crate::simd::Simd::Dotprod(_) => unsafe { neon($($arg),*) },
            }
        }
    };
}
pub(crate) use kernel;

/// Numbers in a [`Vector`]: how many partial sums a dot product keeps, element `i` going to the `i % LANES`th.
pub(crate) const LANES: usize = 16;

/// [`LANES`] numbers that are computed with side by side.
pub(crate) trait Vector: Copy {
    /// Zeros.
    fn zero() -> Self;
    /// The same number in every lane.
    fn splat(x: f32) -> Self;
    /// Numbers from memory.
    fn load(x: &[f32; LANES]) -> Self;
    /// Numbers to memory.
    fn store(self, out: &mut [f32; LANES]);
    /// Lane by lane, `self + a * b`, rounded after the product and after the sum.
    fn add_product(self, a: Self, b: Self) -> Self;
    /// All lanes added up: halves onto each other, until one is left.
    fn sum(self) -> f32;
}

/// Any target's [`Vector`].
#[derive(Clone, Copy)]
pub(crate) struct PortableVector([f32; LANES]);

impl Vector for PortableVector {
    #[inline(always)]
    fn zero() -> Self {
        PortableVector([0.0; LANES])
    }

    #[inline(always)]
    fn splat(x: f32) -> Self {
        PortableVector([x; LANES])
    }

    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        PortableVector(*x)
    }

    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        *out = self.0;
    }

    #[inline(always)]
    fn add_product(mut self, a: Self, b: Self) -> Self {
        for i in 0..LANES {
            self.0[i] += a.0[i] * b.0[i];
        }
        self
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = self.0;
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
            half /= 2;
        }
        lanes[0]
    }
}

/// The [`Vector`] of AVX2; only kernels that were compiled for AVX2 may use it.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx2Vector(std::arch::x86_64::__m256, std::arch::x86_64::__m256);

#[cfg(target_arch = "x86_64")]
mod avx2_vector {
    use std::arch::x86_64::*;

    use super::{Avx2Vector, LANES, Vector};

    impl Vector for Avx2Vector {
        #[inline(always)]
        fn zero() -> Self {
            Self::splat(0.0)
        }

        #[inline(always)]
        fn splat(x: f32) -> Self {
            // SAFETY: by the type's contract the processor has AVX2.
            let x = unsafe { _mm256_set1_ps(x) };
            Avx2Vector(x, x)
        }

        #[inline(always)]
        fn load(x: &[f32; LANES]) -> Self {
            // SAFETY: the array holds the 16 numbers that are read; the processor has AVX2.
            unsafe { Avx2Vector(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))) }
        }

        #[inline(always)]
        fn store(self, out: &mut [f32; LANES]) {
            // SAFETY: the array holds the 16 numbers that are written; the processor has AVX2.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), self.0);
                _mm256_storeu_ps(out.as_mut_ptr().add(8), self.1);
            }
        }

        #[inline(always)]
        fn add_product(self, a: Self, b: Self) -> Self {
            // SAFETY: by the type's contract the processor has AVX2.
            unsafe {
                Avx2Vector(
                    _mm256_add_ps(self.0, _mm256_mul_ps(a.0, b.0)),
                    _mm256_add_ps(self.1, _mm256_mul_ps(a.1, b.1)),
                )
            }
        }

        #[inline(always)]
        fn sum(self) -> f32 {
            // SAFETY: by the type's contract the processor has AVX2.
            unsafe {
                let eight = _mm256_add_ps(self.0, self.1);
                let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            }
        }
    }
}

/// The [`Vector`] of NEON; only kernels that were compiled for NEON may use it.
#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy)]
pub(crate) struct NeonVector([std::arch::aarch64::float32x4_t; 4]);

#[cfg(target_arch = "aarch64")]
mod neon_vector {
    use std::arch::aarch64::*;

    use super::{LANES, NeonVector, Vector};

    impl Vector for NeonVector {
        #[inline(always)]
        fn zero() -> Self {
            Self::splat(0.0)
        }

        #[inline(always)]
        fn splat(x: f32) -> Self {
            // SAFETY: by the type's contract the processor has NEON.
            NeonVector([unsafe { vdupq_n_f32(x) }; 4])
        }

        #[inline(always)]
        fn load(x: &[f32; LANES]) -> Self {
            let x = x.as_ptr();
            // SAFETY: the array holds the 16 numbers that are read; the processor has NEON.
            NeonVector(unsafe {
                [vld1q_f32(x), vld1q_f32(x.add(4)), vld1q_f32(x.add(8)), vld1q_f32(x.add(12))]
            })
        }

        #[inline(always)]
        fn store(self, out: &mut [f32; LANES]) {
            for (x, out) in self.0.into_iter().zip(out.as_chunks_mut::<4>().0) {
                // SAFETY: the chunk holds the 4 numbers that are written; the processor has NEON.
                unsafe { vst1q_f32(out.as_mut_ptr(), x) };
            }
        }

        #[inline(always)]
        fn add_product(mut self, a: Self, b: Self) -> Self {
            for i in 0..4 {
                // SAFETY: by the type's contract the processor has NEON.
                self.0[i] = unsafe { vaddq_f32(self.0[i], vmulq_f32(a.0[i], b.0[i])) };
            }
            self
        }

        #[inline(always)]
        fn sum(self) -> f32 {
            // SAFETY: by the type's contract the processor has NEON.
            unsafe {
                let four = vaddq_f32(vaddq_f32(self.0[0], self.0[2]), vaddq_f32(self.0[1], self.0[3]));
                let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
                vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
            }
        }
    }
}

/// The dot product of two slices of equal length.
#[inline(always)]
pub(crate) fn dot<V: Vector>(a: &[f32], b: &[f32]) -> f32 {
    add_dot(V::zero(), a, b).sum()
}

/// Goes on with a dot product; every slice but the last must be a multiple of [`LANES`] long.
#[inline(always)]
pub(crate) fn add_dot<V: Vector>(mut lanes: V, a: &[f32], b: &[f32]) -> V {
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        lanes = lanes.add_product(V::load(a), V::load(b));
    }
    if !a_rest.is_empty() {
        lanes = lanes.add_product(V::load(&padded(a_rest)), V::load(&padded(b_rest)));
    }
    lanes
}

/// Fewer than [`LANES`] numbers, and zeros.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut all = [0.0; LANES];
    all[..rest.len()].copy_from_slice(rest);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    kernel! {
        fn dot_in_two<V>(a: &[f32], b: &[f32], cut: usize) -> f32 {
            add_dot(add_dot(V::zero(), &a[..cut], &b[..cut]), &a[cut..], &b[cut..]).sum()
        }
    }

    #[test]
    fn a_dot_product_depends_neither_on_where_it_is_cut_nor_on_the_instructions() {
        let a: Vec<f32> = (0..100).map(|i| (i as f32 * 0.37).sin()).collect();
        let b: Vec<f32> = (0..100).map(|i| (i as f32 * 0.91).cos()).collect();
        let whole = dot_in_two(Simd::Portable, &a, &b, 0);
        for simd in Simd::available() {
            for cut in [0, 16, 48, 96] {
                assert_eq!(dot_in_two(simd, &a, &b, cut), whole, "{simd:?} cut at {cut}");
            }
        }
        let exact: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        assert!((f64::from(whole) - exact).abs() < 1e-5);
    }
}
