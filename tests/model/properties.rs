//! What must hold: of a record that lands, of an output, of every state.
use crate::changelog::*;
use crate::fold::*;
use crate::world::*;

pub fn land_check(c: &Cfg, w: &W, r: &Rec) -> Option<String> {
    if r.key == WM || r.tomb {
        return None;
    }
    if r.key == RU && (c.judge > 0 || c.unknown == 1) {
        return None;
    }
    let rf = reff(c, w);
    let x = rf.at[r.ks.src as usize][r.key as usize];
    if c.pin == 3 && x.stage != FGT && x.pver != r.ks.pver {
        return Some(format!("S3 divergence: landed state of key {} was decided by rule set {} (0: refused), the log permits {}",r.key,r.ks.pver,x.pver));
    }
    if r.ks.stage == DONE && x.stage == FGT && c.forget == 1 {
        return None;
    }
    if (x.stage, x.seq, x.dc) != (r.ks.stage, r.ks.seq, r.ks.dc) {
        return Some(format!(
            "S3 divergence: landed state of key {} {:?} differs from the reference fold {:?}",
            r.key, r.ks, x
        ));
    }
    None
}
pub fn out_check(c: &Cfg, w: &W, o: u8, v: u8, hist: bool) -> Option<String> {
    let b = 1u16 << (2 * o + v);
    let nb = 1u16 << (2 * o + 1 - v);
    let rf = reff(c, w);
    let e = w.log[o as usize];
    if kind(e) == 5 && hist && !rf.h[o as usize] {
        return Some(format!(
            "S3 dead letter of the raise at offset {}, which the log permits",
            o
        ));
    }
    if !alone(e) {
        if c.pin == 3 && v != rf.v[o as usize] {
            return Some(format!(
                "S3 output of offset {} is not that of the rule set which the log permits there",
                o
            ));
        }
        if (w.oh | w.os) & nb != 0 {
            return Some(format!("S8 contradiction: offset {} output decided by code v{} but v{} was already emitted",o,v,1-v));
        }
        if c.strict > 0 && w.dur & b == 0 {
            return Some(format!(
                "S8 order: output of offset {} v{} before its decision is durable",
                o, v
            ));
        }
        if hist && !rf.h[o as usize] {
            return Some(format!("S3 phantom history of offset {}", o));
        }
        if !hist && !rf.s[o as usize] {
            return Some(format!("S3 phantom step of offset {}", o));
        }
        if hist {
            for p in 0..o {
                let q = w.log[p as usize];
                if !alone(q) && key(q) == key(e) && rf.h[p as usize] && (w.oh >> (2 * p)) & 3 == 0 {
                    return Some(format!("ORDER history of offset {} appears before that of offset {} of the same key",o,p));
                }
            }
        }
    }
    None
}
pub fn bad(c: &Cfg, w: &W) -> Option<String> {
    let rf = reff(c, w);
    let (m, wm) = recover(c, w);
    for k in 0..3 {
        if k == 2 && (c.judge > 0 || c.unknown == 1) {
            continue;
        }
        let l = rf.last[w.com as usize][k];
        if l > 0 {
            if m[k].src < l {
                let fpos = if k == 2 {
                    None
                } else {
                    (0..w.len).find(|&o| {
                        kind(w.log[o as usize]) == 2
                            && key(w.log[o as usize]) as usize == k
                            && rf.at[o as usize + 1][k].stage == FGT
                    })
                };
                let legit = m[k].stage == 0
                    && fpos.map_or(false, |f| {
                        (0..f as usize).all(|p| {
                            alone(w.log[p])
                                || key(w.log[p]) as usize != k
                                || !rf.h[p]
                                || (w.oh >> (2 * p)) & 3 != 0
                        })
                    });
                let _ = wm;
                if !legit {
                    return Some(format!(
                        "R1 committed={} but a recovery now finds key {} at src {} ({}), needs {}",
                        w.com,
                        k,
                        m[k].src as i8 - 1,
                        if m[k].stage == 0 { "absent" } else { "stale" },
                        l - 1
                    ));
                }
            }
        }
    }
    let need = |o: usize, n: usize| -> Option<String> {
        if rf.h[o] && (w.oh >> (2 * o)) & 3 == 0 {
            return Some(format!("history/dead letter of offset {}", o));
        }
        if rf.s[o] && (w.os >> (2 * o)) & 3 == 0 {
            let k = key(w.log[o]) as usize;
            if c.level == 0
                || (rf.at[n][k].dc == o as u8 + 1
                    && (n == w.len as usize || m[k].dc == o as u8 + 1))
            {
                return Some(format!("step message of offset {}", o));
            }
        }
        None
    };
    for o in 0..w.com as usize {
        if let Some(s) = need(o, w.com as usize) {
            return Some(format!("R2 committed={} but {} was never sent", w.com, s));
        }
    }
    let e = &w.own;
    if !e.dead && e.nst == 0 && e.st_end == 0 && e.out_end == 0 && e.cm == 0 && e.pos >= w.len {
        for o in 0..w.len as usize {
            if let Some(s) = need(o, w.len as usize) {
                return Some(format!("LIVE quiescent (all {} events consumed) but {} was never sent and nothing will send it",w.len,s));
            }
        }
        for k in 0..3 {
            if k == 2 && (c.judge > 0 || c.unknown == 1) {
                continue;
            }
            let x = rf.at[w.len as usize][k];
            let y = e.mem[k];
            let xs = if x.stage == FGT { 0 } else { x.stage };
            let ys = if y.stage == FGT { 0 } else { y.stage };
            if xs != ys && !(c.forget == 1 && x.stage == FGT && y.stage == DONE) {
                return Some(format!(
                    "S3 quiescent but key {} is {:?}, reference {:?}",
                    k, y, x
                ));
            }
        }
    }
    None
}
