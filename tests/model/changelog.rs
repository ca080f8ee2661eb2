//! Recovery, claim, repair and the gap check.
use crate::fold::*;
use crate::world::*;

pub fn rank(c: &Cfg, r: &Rec, i: usize) -> (u8, u8, usize) {
    match c.order {
        0 | 3 => (0, 0, i),
        1 => (r.ks.src, r.gen, i),
        _ => (r.gen, r.ks.src, i),
    }
}
pub fn best(c: &Cfg, w: &W, k: u8) -> Option<usize> {
    (0..w.ncl as usize)
        .filter(|&i| w.cl[i].key == k && !(c.order == 3 && w.cl[i].void))
        .max_by_key(|&i| rank(c, &w.cl[i], i))
}
pub fn recover(c: &Cfg, w: &W) -> ([KS; 3], u8) {
    let mut m = [KS::default(); 3];
    for k in 0..3 {
        if let Some(i) = best(c, w, k as u8) {
            m[k] = w.cl[i].ks;
        }
    }
    if c.judge == 3 {
        for i in 0..w.ncl as usize {
            let r = w.cl[i];
            if r.key == RU {
                m[2].stage = m[2].stage.max(r.ks.stage);
                m[2].seq = m[2].seq.max(r.ks.seq);
            }
        }
    }
    let mut wm = 0;
    if c.order != 1 {
        if let Some(i) = best(c, w, WM) {
            wm = w.cl[i].ks.src;
        }
    } else {
        for i in 0..w.ncl as usize {
            if w.cl[i].key == WM {
                wm = wm.max(w.cl[i].ks.src);
            }
        }
    }
    (m, wm)
}
pub fn normalise(c: &Cfg, w: &mut W) {
    for k in 0..4u8 {
        if c.judge == 3 && k == RU {
            continue;
        }
        if let Some(m) = best(c, w, k) {
            let mg = w.cl[m].gen;
            let mut j = 0;
            let all = w.comp == 0 && c.order == 1 && c.up == 0;
            for i in 0..w.ncl as usize {
                let r = w.cl[i];
                if r.key == k && ((i < m && r.gen <= mg) || (all && i != m)) {
                    continue;
                }
                w.cl[j] = r;
                j += 1;
            }
            for x in j..w.ncl as usize {
                w.cl[x] = Rec::default();
            }
            w.ncl = j as u8;
        }
    }
}
pub fn takeover(c: &Cfg, w: &mut W, gen: u8, ver: u8) {
    // new owner
    let (m, wm) = recover(c, w);
    let mut e = Eng::default();
    e.gen = gen;
    e.ver = ver;
    e.mem = m;
    e.wm = wm;
    e.rwm = wm;
    e.sent = w.com;
    e.pos = w.com.min(wm);
    e.lim = 99;
    if c.pin == 3 && (c.unknown == 0 || c.unknown == 3) && perm(c, &m[2], 99) > knows(ver) {
        e.dead = true;
        w.own = e;
        return;
    } // it claims nothing
    for i in 0..w.ncl as usize {
        w.cl[i].seen = true;
    }
    if c.repair > 0 && c.repair != 4 {
        for k in 0..4u8 {
            if c.unrepaired > 0 && k == RU {
                continue;
            }
            if c.order == 3
                && k < 2
                && best(c, w, k).is_none()
                && (0..w.ncl as usize).any(|i| w.cl[i].key == k)
            {
                let mut r = Rec::default();
                r.key = k;
                r.gen = gen;
                r.seen = true;
                r.tomb = true;
                e.stq[e.nst as usize] = r;
                e.nst += 1;
                e.rep = true;
                continue;
            }
            if let Some(b) = best(c, w, k) {
                let last = (0..w.ncl as usize)
                    .filter(|&i| w.cl[i].key == k)
                    .max()
                    .unwrap();
                if last != b {
                    let mut r = w.cl[b];
                    r.gen = gen;
                    r.seen = true;
                    if k == WM {
                        if c.claim > 0 {
                            continue;
                        }
                        r.ks.src = wm;
                    }
                    r.void = false;
                    e.stq[e.nst as usize] = r;
                    e.nst += 1;
                    e.rep = true;
                }
            }
        }
    }
    if c.claim > 0 {
        let mut r = Rec::default();
        r.key = WM;
        r.gen = gen;
        r.seen = true;
        r.ks.src = wm;
        w.mg = gen;
        w.cl[w.ncl as usize] = r;
        w.ncl += 1;
        for i in 0..w.nz as usize {
            w.z[i].fl = w.z[i].fl.max(gen);
        }
    }
    w.own = e;
}
// gap handling for engine e when it has read the gap; returns false = exit
pub fn handle_gap(c: &Cfg, w: &mut W, e: &mut Eng, isown: bool) -> bool {
    let g = e.nt.max(e.fl);
    if g > e.gen && c.gap > 0 {
        return false;
    }
    e.nt = 0;
    e.fl = 0;
    if c.repair == 0 {
        return true;
    }
    if !isown {
        return true;
    }
    let mut n = 0;
    for k in 0..4u8 {
        if c.unrepaired > 0 && k == RU {
            continue;
        }
        let foreign = (0..w.ncl as usize).any(|i| w.cl[i].key == k && !w.cl[i].seen);
        if !foreign {
            continue;
        }
        if k == WM {
            let mut r = Rec::default();
            r.key = WM;
            r.gen = e.gen;
            r.ks.src = e.wm;
            if e.wm > 0 || c.order >= 2 {
                e.stq[n] = r;
                n += 1;
            }
            continue;
        }
        let own = e.mem[k as usize];
        let (b, ms) = match best(c, w, k) {
            Some(b) => (b, w.cl[b].ks.src),
            None => (0, 0),
        };
        let mut r = Rec::default();
        r.key = k;
        r.gen = e.gen;
        r.ks = own;
        if c.order >= 2 {
            if own.stage == 0 {
                r.tomb = true;
            }
        } else if c.repair == 3 && own.stage > 0 && own.src < ms {
            continue;
        } else if c.repair == 2 && own.src < ms && ms > e.wm {
            let last = (0..w.ncl as usize)
                .filter(|&i| w.cl[i].key == k)
                .max()
                .unwrap();
            if last == b {
                continue;
            }
            r = w.cl[b];
            r.gen = e.gen;
            r.seen = true;
        } else {
            if own.stage > 0 {
            } else if own.stage == 0 && (own.src >= ms || ms <= e.wm) {
                r.tomb = true;
                r.ks = KS::default();
                r.ks.src = ms.max(own.src);
            } else {
                continue;
            }
        }
        e.stq[n] = r;
        n += 1;
    }
    for i in 0..w.ncl as usize {
        w.cl[i].seen = true;
    }
    e.nst = n as u8;
    e.rep = n > 0;
    true
}
// deterministic internal progress after a landing; returns false = engine exits
pub fn advance(c: &Cfg, w: &mut W, e: &mut Eng, isown: bool) -> bool {
    if e.nst == 0 {
        if !e.ghost && e.nt > 0 && (c.gap > 0 || c.repair > 0) {
            if !handle_gap(c, w, e, isown) {
                return false;
            }
            if e.nst > 0 {
                return true;
            }
        }
        e.rep = false;
        if e.st_end > 0 {
            if e.ghost {
                e.st_end = 0;
                e.bh = 0;
                e.bs = 0;
            } else if c.par > 0 {
                if e.ph == 0 && e.ps == 0 {
                    e.cm = e.st_end;
                    e.sent = e.sent.max(e.st_end);
                    e.st_end = 0;
                    e.out_end = 0;
                }
            } else if e.out_end == 0 && e.cm == 0 {
                e.ph = e.bh;
                e.ps = e.bs;
                e.bh = 0;
                e.bs = 0;
                e.out_end = e.st_end;
                e.st_end = 0;
            }
        }
        if e.hk {
            e.hk = false;
        }
    }
    if c.par == 0 && e.out_end > 0 && e.ph == 0 && e.ps == 0 {
        e.sent = e.sent.max(e.out_end);
        e.cm = e.out_end;
        e.out_end = 0;
        if e.ghost {
            e.cm = 0;
        }
    }
    true
}
