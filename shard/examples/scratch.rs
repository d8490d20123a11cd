//! x
use brigade_shard::{gguf::Header, spec::ModelSpec, tensors::TensorTable, cost::*, plan::*, units::Bytes, tokenizer::*};
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let t = std::time::Instant::now();
    let h = Header::open(std::path::Path::new(&std::env::args().nth(1).unwrap()))?;
    println!("open {:?} {}", t.elapsed(), h.fingerprint());
    let spec = ModelSpec::from_header(&h)?;
    let table = TensorTable::new(&h, &spec)?;
    let cost = Cost::new(&spec, &table);
    println!("{:?} {:?}", spec.layers[0], cost.layers()[0]);
    for (n, mib, ctx, par) in [(3, 64, None, 4), (3,64,Some(2048),1), (2, 64, None, 4), (1, 300, None, 4), (3, 40, None, 1), (30, 64, None, 4)] {
        let input = PlanInput { devices: (0..n).map(|i| PlanDevice { name: format!("w{i}"), budget: Bytes::mib(mib), bandwidth_bytes_per_s: 20e9, flops_per_s: 60e9 }).collect(), context: ctx, parallel: par, min_stages: n, step_rows: 64, cache_value_bytes: 2, hop: HopCost::default() };
        let t = std::time::Instant::now();
        match plan(&cost, &input) {
            Ok(p) => { println!("{:?} ctx {} cache {} {:?}\n {} {:?} {:?}", t.elapsed(), p.context, p.cache_tokens, p.predicted, p.bottleneck, p.notes, p.unused);
                for s in p.stages.iter().take(4) { println!("   {} {} w {} c {} ws {} {:.2} {:.3}", s.device, s.shard, s.memory.weights, s.memory.cache, s.memory.workspace, s.decode_ms, s.prefill_ms_per_token); } }
            Err(e) => println!("{:?} {e}", t.elapsed()),
        }
    }
    let t = std::time::Instant::now();
    let tok = Tokenizer::from_header(&h)?;
    println!("tokenizer {:?} bos {:?} add {:?} ends {:?}", t.elapsed(), tok.bos(), tok.bos_to_add(), tok.end_ids());
    let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string("tests/reference/smollm2-tokens.json")?)?;
    let mut bad = 0; let mut n = 0;
    for e in json["texts"].as_array().unwrap() {
        let text = e["text"].as_str().unwrap();
        for (k, sp) in [("plain", ParseSpecial::No), ("special", ParseSpecial::Yes)] {
            let want: Vec<u32> = e[k].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect();
            let got = tok.encode(text, sp)?;
            n += 1;
            if got != want { bad += 1; println!("{k} {text:?}\n got {got:?}\n want {want:?}"); }
            let back = tok.decode(&got, SpecialText::Show);
            if back != text { println!("decode {text:?} -> {back:?}"); }
        }
    }
    println!("{bad} of {n} differ");
    Ok(())
}
