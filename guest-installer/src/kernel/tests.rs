//! Kernels packed by the distribution's own programs.

use super::*;
use crate::testing::noise;
use std::{
    io::Write,
    process::{Command, Stdio},
};

/// Programs and their flags as in Linux' `scripts/Makefile.lib`.
const PACKERS: [(&str, &[&str]); 6] = [
    ("gzip", &["-9", "-n"]),
    ("bzip2", &["-9"]),
    ("lzma", &["-9"]),
    ("xz", &["--check=crc32", "--x86", "--lzma2=dict=32MiB"]),
    ("lz4", &["-l", "-9", "-"]),
    ("zstd", &["-22", "--ultra", "-q", "-"]),
];

fn pack(program: &str, flags: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    command.args(flags).arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{program}: {e}"));
    let mut input = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes).unwrap());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{program}");
        output.stdout
    })
}

/// Something that can be packed.
fn elf(length: usize) -> Vec<u8> {
    let mut file = ELF.to_vec();
    file.extend(noise(length.min(100_000)).into_iter().cycle().take(length));
    file
}

/// A bzImage around a payload, with the size that Linux appends.
fn bzimage(payload: &[u8], unpacked: usize) -> Vec<u8> {
    let mut image = vec![0; 3 * 512];
    image[0x1f1] = 2;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    image[0x248..0x24c].copy_from_slice(&7u32.to_le_bytes());
    let length = u32::try_from(payload.len() + 4).unwrap();
    image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
    image.extend([0x90; 7]);
    image.extend(payload);
    image.extend(u32::try_from(unpacked).unwrap().to_le_bytes());
    image.extend([0; 100]);
    image
}

fn unpacked(image: &[u8], limit: u64) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    unpack(image, limit, &mut |bytes| {
        all.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(all)
}

#[test]
fn what_is_a_kernel() {
    let mut image = bzimage(b"x", 1);
    assert!(check(b"").is_err() && check(b"<html>").is_err() && check(&[0; HEAD]).is_err());
    check(&image).unwrap();
    image[0x206..0x208].copy_from_slice(&[0x04, 0x02]);
    assert!(check(&image).unwrap_err().to_string().contains("0x0204"));
    check(b"\x7fELF\x02").unwrap();
}

#[test]
fn every_compression_is_unpacked_to_the_same_kernel_and_not_beyond_the_limit() {
    // Larger than one block of lz4.
    let kernel = elf(9 << 20);
    let size = u64::try_from(kernel.len()).unwrap();
    assert!(unpacked(&kernel, size).unwrap() == kernel);
    assert!(unpacked(&bzimage(&kernel, 0), size + 4).unwrap().starts_with(&kernel), "not packed at all");
    for (program, flags) in PACKERS {
        let packed = pack(program, flags, &kernel);
        assert_eq!(Packing::of(&packed).map(|p| p.to_string()).as_deref(), Some(program));
        let image = bzimage(&packed, kernel.len());
        assert!(unpacked(&image, size).unwrap() == kernel, "{program}");
        assert_eq!(unpacked(&image, size - 1).unwrap_err().code(), "TOO_LARGE", "{program}");
        let half = bzimage(&packed[..packed.len() / 2], 0);
        assert_eq!(unpacked(&half, size).unwrap_err().code(), "BAD_KERNEL", "{program}");
        let mut broken = image.clone();
        broken[1600 + packed.len() / 2] ^= 0x55;
        // Where nothing checks the content, other bytes come out.
        let unchecked = ["lzma", "lz4", "zstd"].contains(&program);
        assert!(unpacked(&broken, size).map_or(true, |other| unchecked && other != kernel), "{program}");
    }
}

#[test]
fn a_packed_elf_file_is_a_kernel_and_a_packed_something_is_not() {
    let kernel = elf(1000);
    let gzip = |bytes: &[u8]| pack("gzip", &[], bytes);
    assert!(unpacked(&gzip(&kernel), 2000).unwrap() == kernel);
    for image in
        [gzip(b"#!/bin/sh\n"), gzip(b""), bzimage(&gzip(&bzimage(&kernel, 0)), 0), bzimage(b"noise", 0)]
    {
        assert_eq!(unpacked(&image, 1 << 20).unwrap_err().code(), "BAD_KERNEL");
    }
    let lzo = bzimage(b"\x89LZO\0\r\n\x1a\n....", 0);
    assert!(unpacked(&lzo, 1 << 20).unwrap_err().to_string().contains("lzo is not supported"));
}

#[test]
fn a_payload_outside_of_the_file_is_refused() {
    let image = bzimage(&pack("gzip", &[], &elf(1000)), 0);
    for (at, value) in [(0x248, u32::MAX), (0x24c, u32::MAX), (0x24c, 0), (0x248, 1 << 20)] {
        let mut bad = image.clone();
        bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
        assert!(unpacked(&bad, 1 << 20).unwrap_err().to_string().contains("not within the file"));
    }
    assert!(unpacked(&image[..0x240], 1 << 20).is_err());
}

#[test]
fn a_bomb_is_stopped_at_the_limit() {
    let bomb = [ELF, &vec![0; 16 << 20][..]].concat();
    for (program, flags) in PACKERS {
        let packed = pack(program, flags, &bomb);
        assert!(packed.len() < 1 << 20, "{program}");
        assert_eq!(unpacked(&bzimage(&packed, 0), 1 << 20).unwrap_err().code(), "TOO_LARGE", "{program}");
    }
}
