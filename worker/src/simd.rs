//! Which instructions the kernels may use.
//!
//! A kernel that is made here is written once in portable Rust and compiled a second time for AVX2. Both give the same
//! bits: the order of every sum is spelled out, no multiplication is fused with an addition, and the
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

    /// What people call the instructions.
    pub fn name(self) -> &'static str {
        match self {
            Simd::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2(_) => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512(_) => "AVX-512",
            #[cfg(target_arch = "aarch64")]
            Simd::Neon(_) => "NEON",
            #[cfg(target_arch = "aarch64")]
            Simd::Dotprod(_) => "NEON with dot products",
        }
    }
}

/// Defines a kernel that is compiled from one body for the target, and on x86-64 for AVX2.
///
/// The first argument, of type [`Simd`], chooses; the body does not see it. The compiler may compute side by side what
/// does not depend on each other; it keeps the order of a sum.
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(simd: $crate::simd::Simd, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,f16c")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }

            match simd {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: these exist only where detection found AVX2 and F16C.
                $crate::simd::Simd::Avx2(_) | $crate::simd::Simd::Avx512(_) => unsafe { avx2($($arg),*) },
                // Other targets guarantee what they have.
                _ => body($($arg),*),
            }
        }
    };
}
pub(crate) use kernel;
