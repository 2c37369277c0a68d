//! Files: found, read in whole and in part, written.

use anyhow::{Result, ensure};

use super::{LARGE_SIZE, Site, large};

pub(super) fn a_file_comes_with_its_type_and_length(site: &Site) -> Result<()> {
    let answer = site.get("/hello.txt")?.expect(200)?;
    ensure!(answer.body == b"Hello from the disk.\n", "another body: {:?}", answer.body);
    ensure!(
        answer.header("content-type") == "text/plain; charset=utf-8",
        "type {:?}",
        answer.header("content-type")
    );
    ensure!(answer.header("content-length") == "21", "length {:?}", answer.header("content-length"));
    ensure!(answer.header("accept-ranges") == "bytes", "no word of ranges");
    ensure!(answer.header("date").ends_with(" GMT"), "date {:?}", answer.header("date"));
    let head = site.head("/hello.txt")?.expect(200)?;
    ensure!(
        head.body.is_empty() && head.header("content-length") == "21",
        "HEAD is not GET without the body"
    );
    let css = site.get("/folder/deeper/style.css")?.expect(200)?;
    ensure!(css.header("content-type") == "text/css; charset=utf-8", "type {:?}", css.header("content-type"));
    let binary = site.head("/large.bin")?.expect(200)?;
    ensure!(
        binary.header("content-type") == "application/octet-stream",
        "type {:?}",
        binary.header("content-type")
    );
    Ok(())
}

pub(super) fn long_names_and_folders_are_found_in_any_case(site: &Site) -> Result<()> {
    let note = site.get("/folder/A%20note%20with%20a%20long%20name.html")?.expect(200)?;
    ensure!(note.header("content-type").starts_with("text/html"), "type {:?}", note.header("content-type"));
    site.get("/FOLDER/a%20NOTE%20with%20a%20long%20name.HTML")?.expect(200)?;
    let folder = site.get("/folder")?.expect(301)?;
    ensure!(folder.header("location") == "/folder/", "location {:?}", folder.header("location"));
    site.get("/folder/none")?.expect(404)?;
    site.get("/hello.txt/none")?.expect(404).or_else(|_| site.get("/hello.txt/none")?.expect(409))?;
    Ok(())
}

pub(super) fn a_folder_is_listed(site: &Site) -> Result<()> {
    let page = site.get("/")?.expect(200)?.text()?;
    for name in ["hello.txt", "large.bin", "folder/"] {
        ensure!(page.contains(&format!("href=\"./{name}\"")), "{name} is not in the listing:\n{page}");
    }
    let page = site.get("/folder/")?.expect(200)?.text()?;
    ensure!(
        page.contains("A%20note%20with%20a%20long%20name.html"),
        "the note is not in the listing:\n{page}"
    );
    ensure!(page.contains("href=\"../\""), "no way up:\n{page}");
    Ok(())
}

pub(super) fn a_part_of_a_file_can_be_asked_for(site: &Site) -> Result<()> {
    let whole = large();
    for (range, from, to) in [
        ("bytes=0-4", 0, 5),
        ("bytes=4095-4096", 4095, 4097),
        ("bytes=8388600-", LARGE_SIZE - 8, LARGE_SIZE),
        ("bytes=-70000", LARGE_SIZE - 70_000, LARGE_SIZE),
        ("bytes=8388000-99999999", 8_388_000, LARGE_SIZE),
    ] {
        let answer = site.get_range("/large.bin", range)?.expect(206)?;
        ensure!(whole.get(from..to) == Some(&*answer.body), "{range}: other bytes");
        let told = format!("bytes {from}-{}/{LARGE_SIZE}", to - 1);
        ensure!(answer.header("content-range") == told, "{range}: {:?}", answer.header("content-range"));
    }
    let answer = site.get_range("/large.bin", "bytes=8388608-")?.expect(416)?;
    ensure!(answer.header("content-range") == format!("bytes */{LARGE_SIZE}"), "416 without the size");
    // What is no range of bytes may be ignored.
    site.get_range("/hello.txt", "lines=1-2")?.expect(200)?;
    Ok(())
}

pub(super) fn eight_mebibytes_arrive_unchanged(site: &Site) -> Result<()> {
    let answer = site.get("/large.bin")?.expect(200)?;
    ensure!(answer.body == large(), "{} bytes, not those of the disk", answer.body.len());
    Ok(())
}

pub(super) fn a_file_is_written_replaced_and_deleted(site: &Site) -> Result<()> {
    let (first, second) = (large(), b"short".to_vec());
    let first = first.get(..300_001).unwrap_or_default();
    site.put("/new.bin", first)?.expect(201)?;
    ensure!(site.get("/new.bin")?.expect(200)?.body == first, "another file came back");
    site.put("/new.bin", &second)?.expect(204)?;
    ensure!(site.get("/new.bin")?.expect(200)?.body == second, "the old file came back");
    site.put("/empty.txt", b"")?.expect(201)?;
    ensure!(site.get("/empty.txt")?.expect(200)?.body.is_empty(), "an empty file is not empty");
    for path in ["/new.bin", "/empty.txt"] {
        site.delete(path)?.expect(204)?;
        site.get(path)?.expect(404)?;
        site.delete(path)?.expect(404)?;
    }
    Ok(())
}
