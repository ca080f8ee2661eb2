//! States that were seen, by a hash of 64 bits.
use crate::world::*;

pub fn fnv(w: &W) -> u64 {
    // hash of the raw fields
    struct H(u64, u64);
    impl std::hash::Hasher for H {
        fn finish(&self) -> u64 {
            let mut h = self.0 ^ self.1.rotate_left(29);
            h ^= h >> 32;
            h = h.wrapping_mul(0xd6e8feb86659fd93);
            h ^= h >> 32;
            h = h.wrapping_mul(0xd6e8feb86659fd93);
            h ^ (h >> 32)
        }
        fn write(&mut self, b: &[u8]) {
            for &x in b {
                self.write_u8(x);
            }
        }
        fn write_u8(&mut self, x: u8) {
            self.0 = (self.0 ^ (x as u64))
                .wrapping_mul(0x9E3779B97F4A7C15)
                .rotate_left(23);
            self.1 = (self.1.rotate_left(7) ^ (x as u64).wrapping_add(0x51))
                .wrapping_mul(0xff51afd7ed558ccd);
        }
        fn write_u16(&mut self, x: u16) {
            self.0 = (self.0 ^ (x as u64))
                .wrapping_mul(0x9E3779B97F4A7C15)
                .rotate_left(23);
            self.1 = (self.1.rotate_left(7) ^ (x as u64).wrapping_add(0x151))
                .wrapping_mul(0xff51afd7ed558ccd);
        }
    }
    use std::hash::Hasher;
    let mut h = H(0x1234567, 0x89abcdef);
    h.write(&w.log[..w.len as usize]);
    h.write(&[
        w.len, w.com, w.ncl, w.nz, w.crash, w.pause, w.comp, w.dup, w.poi, w.tmo, w.fgt, w.up,
        w.mg, w.raises,
    ]);
    h.write_u16(w.oh);
    h.write_u16(w.os);
    h.write_u16(w.dur);
    let rec = |h: &mut H, r: &Rec| {
        h.write_u16(
            (r.key as u16)
                | ((r.gen as u16) << 2)
                | ((r.seen as u16) << 7)
                | ((r.tomb as u16) << 8)
                | ((r.void as u16) << 9),
        );
        ks(h, &r.ks);
    };
    pub fn ks(h: &mut H, s: &KS) {
        h.write_u16(
            (s.src as u16)
                | ((s.stage as u16) << 4)
                | ((s.seq as u16) << 8)
                | ((s.pver as u16) << 12),
        );
        h.write_u8(s.dc);
        h.write_u16(s.ob);
    }
    for i in 0..w.ncl as usize {
        rec(&mut h, &w.cl[i]);
    }
    for i in 0..=w.nz as usize {
        let e = if i == 0 { &w.own } else { &w.z[i - 1] };
        h.write(&[
            e.gen,
            e.ver,
            e.pos,
            e.lim,
            e.sent,
            e.wm,
            e.rwm,
            e.nst,
            e.rep as u8 | ((e.hk as u8) << 1) | ((e.ghost as u8) << 2) | ((e.dead as u8) << 3),
            e.st_end,
            e.out_end,
            e.cm,
            e.fl,
            e.nt,
        ]);
        h.write_u16(e.bh);
        h.write_u16(e.bs);
        h.write_u16(e.ph);
        h.write_u16(e.ps);
        ks(&mut h, &e.mem[0]);
        ks(&mut h, &e.mem[1]);
        ks(&mut h, &e.mem[2]);
        for j in 0..e.nst as usize {
            rec(&mut h, &e.stq[j]);
        }
    }
    let r = h.finish();
    if r == 0 {
        1
    } else {
        r
    }
}
pub struct Set {
    pub t: Vec<u64>,
    pub n: usize,
}
impl Set {
    pub fn new() -> Set {
        Set {
            t: vec![0; 1 << 20],
            n: 0,
        }
    }
    pub fn ins(&mut self, h: u64) -> bool {
        if self.n * 10 > self.t.len() * 7 {
            let old = std::mem::replace(&mut self.t, Vec::new());
            self.t = vec![0; old.len() * 2];
            let m = self.t.len() - 1;
            for x in old {
                if x != 0 {
                    let mut i = x as usize & m;
                    while self.t[i] != 0 {
                        i = (i + 1) & m;
                    }
                    self.t[i] = x;
                }
            }
        }
        let m = self.t.len() - 1;
        let mut i = h as usize & m;
        loop {
            if self.t[i] == 0 {
                self.t[i] = h;
                self.n += 1;
                return true;
            }
            if self.t[i] == h {
                return false;
            }
            i = (i + 1) & m;
        }
    }
}
