//! trial
use brigade_proto::control::*; use brigade_proto::ids::*; use brigade_proto::step::*; use brigade_proto::sampling::Sampling;
use brigade_shard::{gguf::Header, layers::*, units::Bytes};
use brigade_worker::stage::*;
use std::time::Instant;
fn seg(seq:u64,start:u32,tokens:&[u32],begin:bool,score:bool,sample:bool)->Segment{ Segment{sequence:SequenceId(seq),start,tokens:tokens.to_vec(),begin:begin.then(||SequenceStart{sampling:Sampling{temperature:0.0,..Sampling::default()},prompt_tokens:tokens.len() as u32}),sample,score,next_token:None}}
fn frame(segments:Vec<Segment>,kind:StepKind,release:Vec<u64>)->StepFrame{StepFrame{fence:Fence{incarnation:Incarnation(1),epoch:Epoch(1)},deployment:DeploymentId(1),step:StepId(1),kind,segments,release:release.into_iter().map(SequenceId).collect(),timings:vec![],hidden:None}}
fn rss()->String{ std::fs::read_to_string("/proc/self/status").unwrap().lines().filter(|l|l.starts_with("VmHWM")||l.starts_with("VmRSS")).collect::<Vec<_>>().join(" ")}
fn main(){
    let args:Vec<String>=std::env::args().collect();
    let threads:usize=args[2].parse().unwrap(); let chunk:usize=args[3].parse().unwrap();
    let dtype= if args.get(4).map(|s|s=="f32").unwrap_or(false){CacheDtype::F32}else{CacheDtype::F16};
    let header=Header::open(std::path::Path::new(&args[1])).unwrap();
    let room=StageRoom{cache_tokens:2048,context:2048,step_rows:chunk as u32,sequences:4,cache_dtype:dtype};
    let shard=Shard::of(LayerRange::new(0,30).unwrap(),30);
    println!("idle {}",rss());
    let t=Instant::now();
    let mut stage=Stage::load(StageRequest{header,shard,room,device:DeviceKind::Cpu,threads,budget:Bytes::mib(1024)},&LoadProgress::new()).unwrap();
    println!("load {:?} {:?} total {} {}",t.elapsed(),stage.memory(),stage.memory().total(),rss());
    let refs:serde_json::Value=serde_json::from_str(&std::fs::read_to_string("tests/reference/smollm2.json").unwrap()).unwrap();
    let (mut n,mut sum,mut max)=(0usize,0f64,0f64); let (mut qs,mut qm)=(0f64,0f64);
    let mut prefill_t=0.0; let mut prefill_n=0;
    for case in refs["cases"].as_array().unwrap(){
        let path:Vec<u32>=case["path"].as_array().unwrap().iter().map(|v|v.as_u64().unwrap() as u32).collect();
        let exact:Vec<Option<f64>>=case["exact"].as_array().unwrap().iter().map(|v|v.as_f64()).collect();
        let quant:Vec<Option<f64>>=case["quantised"].as_array().unwrap().iter().map(|v|v.as_f64()).collect();
        let mut ours=vec![]; let mut at=0; let t=Instant::now();
        while at<path.len(){ let end=path.len().min(at+chunk);
            let mut s=seg(1,at as u32,&path[at..end],at==0,true,false); s.next_token=path.get(end).copied();
            let StageOutput::Finish(r)=stage.run(frame(vec![s],StepKind::Prefill,vec![])).unwrap() else{panic!()};
            ours.extend(r.outputs[0].scores.iter().map(|s|s.logprob as f64)); at=end; }
        prefill_t+=t.elapsed().as_secs_f64(); prefill_n+=path.len();
        stage.run(frame(vec![],StepKind::Decode,vec![1])).unwrap();
        let (mut cs,mut cm)=(0f64,0f64);let(mut cqs,mut cqm)=(0f64,0f64);
        for i in 1..path.len(){ let e=(ours[i-1]-exact[i].unwrap()).abs(); cs+=e; cm=cm.max(e); let q=(quant[i].unwrap()-exact[i].unwrap()).abs(); cqs+=q; cqm=cqm.max(q);}
        println!("{:14} n {:5} ours mean {:.4} max {:.4}   llama.cpp mean {:.4} max {:.4}",case["name"].as_str().unwrap(),path.len(),cs/(path.len()-1) as f64,cm,cqs/(path.len()-1) as f64,cqm);
        n+=path.len()-1; sum+=cs; max=max.max(cm); qs+=cqs; qm=qm.max(cqm);
    }
    println!("ALL ours mean {:.5} max {:.5}  llama.cpp mean {:.5} max {:.5}; scored prefill {:.1} t/s",sum/n as f64,max,qs/n as f64,qm,prefill_n as f64/prefill_t);
    // speed
    let tokens:Vec<u32>=(0..512).map(|i|1000+i*37%40000).collect();
    let t=Instant::now(); let mut at=0; let mut last=0;
    while at<512{ let end=512.min(at+chunk); let StageOutput::Finish(r)=stage.run(frame(vec![seg(2,at as u32,&tokens[at..end],at==0,false,end==512)],StepKind::Prefill,vec![])).unwrap() else{panic!()}; if end==512{last=r.outputs[0].sampled.as_ref().unwrap().token;} at=end;}
    println!("prefill 512: {:.1} t/s",512.0/t.elapsed().as_secs_f64());
    let t=Instant::now(); for i in 0..128u32{ let StageOutput::Finish(r)=stage.run(frame(vec![seg(2,512+i,&[last],false,false,true)],StepKind::Decode,vec![])).unwrap() else{panic!()}; last=r.outputs[0].sampled.as_ref().unwrap().token;}
    println!("decode at 512: {:.1} t/s",128.0/t.elapsed().as_secs_f64());
    stage.run(frame(vec![],StepKind::Decode,vec![2])).unwrap();
    let t=Instant::now(); let mut last=1; for i in 0..128u32{ let StageOutput::Finish(r)=stage.run(frame(vec![seg(3,i,&[last],i==0,false,true)],StepKind::Decode,vec![])).unwrap() else{panic!()}; last=r.outputs[0].sampled.as_ref().unwrap().token;}
    println!("decode at 0: {:.1} t/s   {}",128.0/t.elapsed().as_secs_f64(),rss());
    let t=Instant::now(); let c=brigade_worker::calibrate::calibrate(DeviceKind::Cpu,threads).unwrap(); println!("calibrate {:?} GB/s {:.1} GFLOPS {:.1} {}",t.elapsed(),c.bandwidth_bytes_per_s/1e9,c.flops_per_s/1e9,rss());
}
