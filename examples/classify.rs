//! The Rust client of README.md, which a test keeps the same.

#![allow(clippy::print_stdout, reason = "it prints what it found")]

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = std::env::args().nth(1).unwrap_or("http://localhost:8080".into());
    let answer: serde_json::Value = reqwest::Client::new()
        .post(format!("{server}/v1/classify?max_blocks=5"))
        .body(std::fs::read("samples/truck.jpg")?)
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    println!("{}", answer["results"][0]);
    Ok(())
}
