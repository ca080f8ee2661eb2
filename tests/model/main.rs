//! Explicit-state model checker of the commit protocol: batches, mixed keys, replays, zombies, compaction, expiry,
//! upgrades and rule sets. `main name=value ...` explores one configuration breadth first (`walk=n`: at random); the
//! switches are in `world.rs`, the configurations in `configurations.py`.
mod batch;
mod changelog;
mod fold;
mod properties;
mod seen;
mod steps;
mod words;
mod world;

use properties::*;
use seen::*;
use std::collections::HashMap;
use steps::*;
use words::*;
use world::*;

fn main() {
    let mut m: HashMap<String, u64> = HashMap::new();
    let mut name = String::from("run");
    for a in std::env::args().skip(1) {
        let (k, v) = a.split_once('=').expect("name=value");
        if k == "name" {
            name = v.into();
        } else {
            m.insert(k.into(), v.parse().unwrap());
        }
    }
    for k in m.keys() {
        assert!(Cfg::NAMES.contains(&k.as_str()), "unknown switch {}", k);
    }
    let c = Cfg::of(&m);
    assert!(c.maxlog <= 8 && c.batch <= 3 && c.zmax <= 2);
    let t0 = std::time::Instant::now();
    let mut w = W::default();
    w.log[0] = ev(0, 0, 0);
    w.len = 1;
    w.crash = c.crash;
    w.pause = c.pause;
    w.comp = c.comp;
    w.dup = c.dup;
    w.poi = c.poi;
    w.tmo = c.tmo;
    w.fgt = c.fgt;
    w.up = c.up;
    w.raises = c.raises;
    w.own.ver = c.code;
    w.own.gen = 1;
    w.own.lim = 99;
    let walk = *m.get("walk").unwrap_or(&0);
    if walk > 0 {
        let mut r = *m.get("seed").unwrap_or(&1) | 1;
        let secs = *m.get("secs").unwrap_or(&600);
        let mut out = Vec::new();
        let mut steps = 0u64;
        let mut full = 0u64;
        let mut nw = 0u64;
        let mut used = [0u64; 20];
        let mut rnd = move || {
            r ^= r << 13;
            r ^= r >> 7;
            r ^= r << 17;
            (r.wrapping_mul(0x2545F4914F6CDD1D)) >> 33
        };
        let mut uniq = Set::new();
        while nw < walk && t0.elapsed().as_secs() < secs {
            nw += 1;
            let mut x = w;
            let mut tr: Vec<L> = vec![];
            let fw = 1 + rnd() % 12;
            let die = 1 + rnd() % 8;
            loop {
                let mut v = None;
                succ(&c, &x, &mut out, &mut v);
                if let Some((l, s)) = v {
                    tr.push(l);
                    println!(
                        "{}: VIOLATION in walk {} ({} steps): {}",
                        name,
                        nw,
                        tr.len(),
                        s
                    );
                    for (i, l) in tr.iter().enumerate() {
                        println!("   {:2} {}", i + 1, lab(*l, c.pin));
                    }
                    return;
                }
                if out.is_empty() {
                    full += 1;
                    break;
                }
                let wt = |l: &L| -> u64 {
                    match l[0] {
                        12..=16 => 2,
                        9 => die,
                        _ => 2 * fw,
                    }
                };
                let tot: u64 = out.iter().map(|(l, _)| wt(l)).sum();
                let mut p = rnd() % tot;
                let mut ch = 0;
                for (i, (l, _)) in out.iter().enumerate() {
                    let q = wt(l);
                    if p < q {
                        ch = i;
                        break;
                    }
                    p -= q;
                }
                let (l, nx) = out[ch];
                tr.push(l);
                used[l[0] as usize] += 1;
                x = nx;
                steps += 1;
                if uniq.n < 120_000_000 {
                    uniq.ins(fnv(&x));
                }
                if let Some(s) = bad(&c, &x) {
                    println!(
                        "{}: VIOLATION in walk {} ({} steps): {}",
                        name,
                        nw,
                        tr.len(),
                        s
                    );
                    for (i, l) in tr.iter().enumerate() {
                        println!("   {:2} {}", i + 1, lab(*l, c.pin));
                    }
                    return;
                }
                if tr.len() > 200 {
                    break;
                }
            }
        }
        println!("{}: NO VIOLATION in {} random walks ({} to the end), {} steps, {} distinct states, {:.0}s; crashes {} ghosts {} pauses {} compactions {} tombstones dropped {} repairs {}",name,nw,full,steps,uniq.n,t0.elapsed().as_secs_f64(),used[12],used[13],used[14],used[15],used[16],used[7]);
        return;
    }
    let mut seen = Set::new();
    seen.ins(fnv(&w));
    let mut par: Vec<(u32, L)> = vec![(u32::MAX, [0; 4])];
    let mut cur = vec![(0u32, w)];
    let mut out = Vec::new();
    let mut depth = 0;
    let mut maxf = 0;
    let mut quies = 0u64;
    let show =
        |par: &Vec<(u32, L)>, mut i: u32, extra: Option<L>, msg: &str, n: usize, depth: usize| {
            let mut t = vec![];
            if let Some(l) = extra {
                t.push(l);
            }
            while par[i as usize].0 != u32::MAX {
                t.push(par[i as usize].1);
                i = par[i as usize].0;
            }
            t.reverse();
            println!(
                "{}: VIOLATION after {} states, depth {}, {:.1}s: {}",
                name,
                n,
                depth,
                t0.elapsed().as_secs_f64(),
                msg
            );
            for (i, l) in t.iter().enumerate() {
                println!("   {:2} {}", i + 1, lab(*l, c.pin));
            }
        };
    while !cur.is_empty() {
        let mut next = Vec::new();
        maxf = maxf.max(cur.len());
        for (id, w) in cur.drain(..) {
            let mut v = None;
            succ(&c, &w, &mut out, &mut v);
            if let Some((l, s)) = v {
                show(&par, id, Some(l), &s, seen.n, depth + 1);
                return;
            }
            for (l, x) in out.drain(..) {
                if seen.ins(fnv(&x)) {
                    let nid = par.len() as u32;
                    par.push((id, l));
                    if let Some(s) = bad(&c, &x) {
                        show(&par, nid, None, &s, seen.n, depth + 1);
                        return;
                    }
                    if x.own.pos >= x.len
                        && x.own.nst == 0
                        && x.own.st_end == 0
                        && x.own.out_end == 0
                    {
                        quies += 1;
                    }
                    next.push((nid, x));
                }
            }
            if seen.n as u64 > c.cap {
                println!(
                    "{}: NO VIOLATION in {} states (cap reached, depth {} complete), {:.0}s",
                    name,
                    seen.n,
                    depth,
                    t0.elapsed().as_secs_f64()
                );
                return;
            }
        }
        cur = next;
        depth += 1;
    }
    println!(
        "{}: OK, {} states exhausted, depth {}, widest level {}, quiescent {}, {:.0}s",
        name,
        seen.n,
        depth,
        maxf,
        quies,
        t0.elapsed().as_secs_f64()
    );
    let _ = &c;
}
