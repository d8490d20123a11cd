//! Chunks out of a model's own files.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use brigade_shard::chunks::Chunks;
use bytes::Bytes;

use super::serve::ChunkReader;

/// Reads chunks where a model's files are as a whole. Whoever gets them checks them.
pub struct FileReader {
    chunks: Chunks,
    files: Vec<(PathBuf, File)>,
}

impl FileReader {
    /// Opens the files of a model, of which these are the chunks.
    ///
    /// # Errors
    /// Which one cannot be opened, for people.
    pub fn open(parts: &[PathBuf], chunks: &Chunks) -> Result<FileReader, String> {
        let open = |path: &PathBuf| match File::open(path) {
            Ok(file) => Ok((path.clone(), file)),
            Err(error) => Err(format!("failed to open {}: {error}", path.display())),
        };
        let files = parts.iter().map(open).collect::<Result<_, _>>()?;
        Ok(FileReader { chunks: chunks.clone(), files })
    }
}

impl ChunkReader for FileReader {
    fn read(&mut self, number: u32) -> Result<Option<Bytes>, String> {
        let Some(chunk) = self.chunks.get(number) else { return Ok(None) };
        let Some((path, file)) = self.files.get(chunk.part) else { return Ok(None) };
        let mut bytes = vec![0; chunk.bytes as usize];
        let read = file.read_exact_at(&mut bytes, chunk.offset);
        read.map_err(|error| format!("failed to read {} at byte {}: {error}", path.display(), chunk.offset))?;
        Ok(Some(bytes.into()))
    }
}
