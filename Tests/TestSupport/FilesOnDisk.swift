// What files look like as they lie on the disk.

/// The records of a journal: a magic word of 8 bytes, the payload's length, its checksum, the payload.
public func journalRecords(in journal: [UInt8]) -> [Range<Int>] {
  var records: [Range<Int>] = []
  var start = 0
  while start + 24 <= journal.count, journal[start..<start + 8].elementsEqual("QELINEAR".utf8) {
    let count = number(journal, at: start + 8, bytes: 8)
    records.append(start..<start + 24 + count)
    start += 24 + count
  }
  return records
}

/// A byte inside every large value of an LMDB file: values that fill pages of their own, behind a page's header.
public func valueBytes(inDatabase bytes: [UInt8]) -> [Int] {
  let (pageSize, overflowFlag) = (4_096, 4)
  return stride(from: 2 * pageSize, to: bytes.count - pageSize + 1, by: pageSize).compactMap { page in
    // The page's number, 8 bytes, and 2 of padding stand before its flags.
    let isOverflow =
      number(bytes, at: page, bytes: 8) == page / pageSize
      && number(bytes, at: page + 10, bytes: 2) == overflowFlag
    return isOverflow ? page + 1_000 : nil
  }
}

private func number(_ bytes: [UInt8], at offset: Int, bytes count: Int) -> Int {
  (0..<count).reduce(0) { $0 | Int(bytes[offset + $1]) << (8 * $1) }
}
