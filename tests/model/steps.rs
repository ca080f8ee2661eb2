//! Everything that can happen next.
use crate::batch::*;
use crate::changelog::*;
use crate::fold::*;
use crate::properties::*;
use crate::world::*;

pub type L = [u8; 4];
pub fn succ(c: &Cfg, w: &W, out: &mut Vec<(L, W)>, viol: &mut Option<(L, String)>) {
    out.clear();
    for i in 0..=w.nz as usize {
        let isown = i == 0;
        let e = if isown { w.own } else { w.z[i - 1] };
        let who = i as u8;
        let fenced = !isown && c.fence > 0;
        let mut put = |lab: L, e2: Option<Eng>, w2: W| {
            let mut x = w2;
            match e2 {
                Some(v) => {
                    if isown {
                        x.own = v;
                    } else {
                        x.z[i - 1] = v;
                        if v.ghost && v.nst == 0 && v.ph == 0 && v.ps == 0 {
                            drop_z(&mut x, i - 1);
                        }
                    }
                }
                None => {
                    if isown {
                        return;
                    }
                    drop_z(&mut x, i - 1);
                }
            }
            normalise(c, &mut x);
            out.push((lab, x));
        };
        if e.nst > 0 && !fenced {
            assert!((w.ncl as usize) < 16, "changelog bound");
            let mut x = *w;
            let mut e2 = e;
            let mut r = e.stq[0];
            for j in 1..4 {
                e2.stq[j - 1] = e2.stq[j];
            }
            e2.stq[3] = Rec::default();
            e2.nst -= 1;
            r.seen = isown;
            if let Some(s) = land_check(c, w, &r) {
                *viol = Some(([1, who, r.key, r.ks.src], s));
                return;
            }
            r.void = r.gen < x.mg;
            x.mg = x.mg.max(r.gen);
            x.cl[x.ncl as usize] = r;
            x.ncl += 1;
            x.dur |= if r.key < 2 { r.ks.ob } else { 0 };
            if e2.fl > 0 {
                e2.nt = e2.nt.max(e2.fl);
                e2.fl = 0;
            }
            if !isown {
                x.own.fl = x.own.fl.max(r.gen);
            }
            for j in 0..x.nz as usize {
                if j + 1 != i {
                    x.z[j].fl = x.z[j].fl.max(r.gen);
                }
            }
            let ok = advance(c, &mut x, &mut e2, isown);
            put(
                [1, who, r.key | if r.tomb { 8 } else { 0 }, r.ks.src],
                if ok { Some(e2) } else { None },
                x,
            );
        }
        if e.ph != 0 || e.ps != 0 {
            if e.ph != 0 {
                let b = e.ph.trailing_zeros() as u8;
                let mut x = *w;
                let mut e2 = e;
                e2.ph &= !(1 << b);
                if let Some(s) = out_check(c, w, b / 2, b & 1, true) {
                    *viol = Some(([2, who, b / 2, b & 1], s));
                    return;
                }
                x.oh |= 1 << b;
                let ok = advance(c, &mut x, &mut e2, isown);
                put([2, who, b / 2, b & 1], if ok { Some(e2) } else { None }, x);
            }
            let mut m = e.ps;
            while m != 0 {
                let b = m.trailing_zeros() as u8;
                m &= m - 1;
                let mut x = *w;
                let mut e2 = e;
                e2.ps &= !(1 << b);
                if let Some(s) = out_check(c, w, b / 2, b & 1, false) {
                    *viol = Some(([3, who, b / 2, b & 1], s));
                    return;
                }
                x.os |= 1 << b;
                let ok = advance(c, &mut x, &mut e2, isown);
                put([3, who, b / 2, b & 1], if ok { Some(e2) } else { None }, x);
            }
        }
        if e.cm > 0 && !e.ghost {
            let mut e2 = e;
            e2.cm = 0;
            let mut x = *w;
            let ok = advance(c, &mut x, &mut e2, isown);
            if ok {
                if isown || c.zcommit > 0 {
                    let mut y = x;
                    y.com = y.com.max(e.cm);
                    put([4, who, e.cm, 0], Some(e2), y);
                }
                put([5, who, e.cm, 0], Some(e2), x);
            }
        }
        if !e.ghost
            && !e.dead
            && e.nst == 0
            && e.st_end == 0
            && (c.pipe > 0 || (e.out_end == 0 && e.cm == 0))
        {
            let lim = e.lim.min(w.len);
            for n in 1..=c.batch {
                if e.pos + n <= lim {
                    let mut e2 = start(c, w, &e, n);
                    let mut x = *w;
                    if c.par > 0 {
                        let _ = advance(c, &mut x, &mut e2, isown);
                    }
                    put([6, who, e.pos, n], Some(e2), x);
                }
            }
        }
        if isown && !e.dead && e.nst == 0 && e.st_end == 0 && e.fl > 0 && c.repair > 0 {
            let mut e2 = e;
            let mut x = *w;
            if handle_gap(c, &mut x, &mut e2, true) {
                put([7, who, 0, 0], Some(e2), x);
            }
        }
        if isown
            && !e.dead
            && c.forget == 2
            && e.nst == 0
            && e.st_end == 0
            && e.out_end == 0
            && e.cm == 0
        {
            for k in 0..2u8 {
                let s = e.mem[k as usize];
                if s.stage == FGT
                    && (c.fsafe == 0 || (s.src <= e.sent && s.ob & !mask_lt(e.sent) == 0))
                {
                    let mut e2 = e;
                    let mut q = KS::default();
                    q.src = s.src;
                    e2.mem[k as usize] = q;
                    let mut r = Rec::default();
                    r.key = k;
                    r.gen = e.gen;
                    r.tomb = true;
                    r.ks = q;
                    e2.stq[0] = r;
                    e2.nst = 1;
                    put([8, who, k, 0], Some(e2), *w);
                }
            }
        }
        if !isown {
            let x = *w;
            put([9, who, 0, 0], None, x);
        }
    }
    if w.len < c.maxlog {
        // clients, workers, timers
        let app = |e: u8, x: &mut W| {
            x.log[x.len as usize] = e;
            x.len += 1;
        };
        let rf = reff(c, w);
        let done = |e: u8| (0..w.len as usize).any(|i| w.log[i] == e);
        for o in 0..w.len {
            if (w.os >> (2 * o)) & 3 != 0 {
                let k = key(w.log[o as usize]);
                let e = ev(1, k, o);
                if !done(e) {
                    let mut x = *w;
                    app(e, &mut x);
                    out.push(([10, e, 0, 0], x));
                } else if w.dup > 0 && !(c.forget == 1 && done(ev(2, k, 0))) {
                    let mut x = *w;
                    x.dup -= 1;
                    app(e, &mut x);
                    out.push(([11, e, 0, 0], x));
                }
            }
        }
        if w.dup > 0 && c.pin == 3 && done(ev(0, 1, 0)) && !done(ev(2, 1, 0)) {
            let e = ev(0, 1, 0);
            let mut x = *w;
            x.dup -= 1;
            app(e, &mut x);
            out.push(([11, e, 0, 0], x));
        }
        if w.dup > 0 && !done(ev(2, 0, 0)) {
            let e = ev(0, 0, 0);
            let mut x = *w;
            x.dup -= 1;
            app(e, &mut x);
            out.push(([11, e, 0, 0], x));
        }
        if !done(ev(0, 1, 0)) {
            let mut x = *w;
            app(ev(0, 1, 0), &mut x);
            out.push(([10, ev(0, 1, 0), 0, 0], x));
        }
        if w.raises > 0 {
            for n in 2..=3 {
                let e = ev(5, 0, n);
                let mut x = *w;
                x.raises -= 1;
                app(e, &mut x);
                out.push(([10, e, 0, 0], x));
            }
        }
        if w.poi > 0 {
            let mut x = *w;
            x.poi -= 1;
            app(ev(3, 0, 0), &mut x);
            out.push(([10, ev(3, 0, 0), 0, 0], x));
        }
        if w.tmo > 0 {
            let s = rf.at[w.len as usize][0];
            if s.stage > 0 && s.stage < DONE {
                let mut x = *w;
                x.tmo -= 1;
                app(ev(4, 0, s.dc - 1), &mut x);
                out.push(([10, ev(4, 0, s.dc - 1), 0, 0], x));
            }
        }
        if w.fgt > 0 {
            for k in 0..2 {
                let s = rf.at[w.len as usize][k as usize];
                if s.stage == DONE {
                    let mut x = *w;
                    x.fgt -= 1;
                    app(ev(2, k, 0), &mut x);
                    out.push(([10, ev(2, k, 0), 0, 0], x));
                }
            }
        }
    }
    if w.crash > 0 || w.pause > 0 {
        for up in 0..=(w.up.min(1)) {
            let ver = w.own.ver ^ up;
            if w.crash > 0 {
                let mut x = *w;
                x.crash -= 1;
                x.up -= up;
                let o = x.own;
                takeover(c, &mut x, o.gen + 1, ver);
                normalise(c, &mut x);
                out.push(([12, up, 0, 0], x));
                if c.ghosts > 0
                    && x.nz < c.zmax
                    && (o.nst > 0 || (c.ghosts > 1 && (o.ph | o.ps) != 0))
                {
                    let mut g = o;
                    g.ghost = true;
                    g.cm = 0;
                    g.fl = 0;
                    g.nt = 0;
                    g.mem = Default::default();
                    g.pos = 0;
                    g.sent = 0;
                    g.wm = 0;
                    g.rwm = 0;
                    g.bh = 0;
                    g.bs = 0;
                    if g.nst == 0 {
                        g.st_end = 0;
                    }
                    if c.ghosts < 2 {
                        g.ph = 0;
                        g.ps = 0;
                        g.out_end = 0;
                    }
                    let mut y = *w;
                    y.crash -= 1;
                    y.up -= up;
                    y.z[y.nz as usize] = g;
                    y.nz += 1;
                    takeover(c, &mut y, o.gen + 1, ver);
                    normalise(c, &mut y);
                    out.push(([13, up, 0, 0], y));
                }
            }
            if w.pause > 0 && w.nz < c.zmax {
                let mut x = *w;
                x.pause -= 1;
                x.up -= up;
                let mut o = x.own;
                o.lim = x.len;
                x.z[x.nz as usize] = o;
                x.nz += 1;
                takeover(c, &mut x, o.gen + 1, ver);
                normalise(c, &mut x);
                out.push(([14, up, 0, 0], x));
            }
        }
    }
    if w.comp > 0 {
        for k in 0..4u8 {
            let idx: Vec<usize> = (0..w.ncl as usize).filter(|&i| w.cl[i].key == k).collect();
            for &s in idx.iter() {
                let r = w.cl[s];
                if c.compmode == 1 && (!r.seen || w.own.rep || w.own.dead) {
                    continue;
                }
                let rem = |i: usize| -> bool {
                    i < s
                        && w.cl[i].key == k
                        && (c.compmode != 2
                            || w.cl[i].gen == r.gen
                            || (w.cl[i].gen < r.gen && w.cl[i].ks.src <= r.ks.src))
                };
                if (0..s).any(|i| rem(i)) {
                    let mut x = *w;
                    x.comp -= 1;
                    let mut j = 0;
                    for i in 0..w.ncl as usize {
                        if rem(i) {
                            continue;
                        }
                        x.cl[j] = w.cl[i];
                        j += 1;
                    }
                    for q in j..w.ncl as usize {
                        x.cl[q] = Rec::default();
                    }
                    x.ncl = j as u8;
                    normalise(c, &mut x);
                    out.push(([15, k, r.gen, r.ks.src], x));
                }
            }
            if let Some(&f) = idx.first() {
                if w.cl[f].tomb
                    && (c.compmode != 1
                        || (w.nz == 0
                            && w.own.fl == 0
                            && w.cl[f].seen
                            && !w.own.rep
                            && !w.own.dead))
                {
                    let mut x = *w;
                    x.comp -= 1;
                    let mut j = 0;
                    for i in 0..w.ncl as usize {
                        if i == f {
                            continue;
                        }
                        x.cl[j] = w.cl[i];
                        j += 1;
                    }
                    x.cl[j] = Rec::default();
                    x.ncl = j as u8;
                    out.push(([16, k, 0, 0], x));
                }
            }
        }
    }
}
pub fn drop_z(x: &mut W, i: usize) {
    if i == 0 && x.nz == 2 {
        x.z[0] = x.z[1];
    }
    x.z[x.nz as usize - 1] = Eng::default();
    x.nz -= 1;
}
