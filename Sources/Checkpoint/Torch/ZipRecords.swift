/// The records of a zip archive whose records are stored as they are: where their bytes stand in the file.
///
/// `torch.save` writes such archives, so that tensors can be mapped. Everything is checked against the file: records lie
/// inside it, before the central directory, and none over another.
/// - SeeAlso: APPNOTE.TXT of PKWARE, 4.3 and 4.5.3
struct ZipRecords {
  /// By name.
  private(set) var ranges: [String: Range<Int>] = [:]

  static let beginning: [UInt8] = [0x50, 0x4B, 3, 4]
  private static let endByteCount = 22
  private static let longestComment = 0xFFFF
  private static let maximumCount = 200_000
  private static let maximumDirectoryByteCount = 1 << 25

  /// - Throws: ``TorchFileError``, and what reading throws.
  init(of file: TorchFile.Bytes) throws {
    let directory = try Self.directory(of: file)
    let bytes = try file.read(directory.range)
    var offset = 0
    var isTaken: [(range: Range<Int>, name: String)] = []
    for _ in 0..<directory.count {
      let entry = try Entry(bytes, at: &offset, of: file)
      let range = try entry.dataRange(in: file, before: directory.range.lowerBound)
      guard ranges.updateValue(range, forKey: entry.name) == nil else {
        throw file.error(.damagedArchive("record '\(entry.name)' is there twice"))
      }
      isTaken.append((entry.headerOffset..<range.upperBound, entry.name))
    }
    isTaken.sort { $0.range.lowerBound < $1.range.lowerBound }
    for (first, second) in zip(isTaken, isTaken.dropFirst())
    where second.range.lowerBound < first.range.upperBound {
      throw file.error(.damagedArchive("records '\(first.name)' and '\(second.name)' overlap"))
    }
  }

  // MARK: The end

  /// Where the central directory stands and how many records it names.
  private static func directory(of file: TorchFile.Bytes) throws -> (range: Range<Int>, count: Int) {
    let tailStart = max(0, file.byteCount - endByteCount - longestComment)
    let tail = try file.read(tailStart..<file.byteCount)
    guard let end = endRecord(tail) else {
      throw file.error(.truncated("the end of the zip archive is missing"))
    }
    var count = Int(tail.integer(UInt16.self, at: end + 10))
    var byteCount = UInt64(tail.integer(UInt32.self, at: end + 12))
    var offset = UInt64(tail.integer(UInt32.self, at: end + 16))
    if count == 0xFFFF || byteCount == 0xFFFF_FFFF || offset == 0xFFFF_FFFF {
      // The same in 64 bits, found by a locator before it.
      let locator = end - 20
      guard locator >= 0, tail.integer(UInt32.self, at: locator) == 0x0706_4B50 else {
        throw file.error(.damagedArchive("the locator of its 64-bit end is missing"))
      }
      let place = tail.integer(UInt64.self, at: locator + 8)
      guard place <= file.byteCount - 56 else {
        throw file.error(.damagedArchive("its 64-bit end lies outside the file"))
      }
      let record = try file.read(Int(place)..<Int(place) + 56)
      guard record.integer(UInt32.self, at: 0) == 0x0606_4B50 else {
        throw file.error(.damagedArchive("its 64-bit end is missing"))
      }
      count = Int(clamping: record.integer(UInt64.self, at: 32))
      byteCount = record.integer(UInt64.self, at: 40)
      offset = record.integer(UInt64.self, at: 48)
    }
    guard count <= maximumCount, byteCount <= maximumDirectoryByteCount else {
      throw file.error(.tooLarge("the zip archive claims \(count) records"))
    }
    guard offset <= file.byteCount, Int(byteCount) <= file.byteCount - Int(offset) else {
      throw file.error(.damagedArchive("its directory lies outside the file"))
    }
    return (Int(offset)..<Int(offset) + Int(byteCount), count)
  }

  /// The end record is the last thing in the file but for a comment that it knows the length of.
  private static func endRecord(_ tail: [UInt8]) -> Int? {
    guard tail.count >= endByteCount else { return nil }
    return (0...tail.count - endByteCount).last { place in
      tail[place] == 0x50 && tail.integer(UInt32.self, at: place) == 0x0605_4B50
        && place + endByteCount + Int(tail.integer(UInt16.self, at: place + 20)) == tail.count
    }
  }

  // MARK: Entries

  /// An entry of the central directory.
  private struct Entry {
    let name: String
    let headerOffset: Int
    private let byteCount: Int

    private static let byteCount = 46
    private static let localByteCount = 30

    init(_ directory: [UInt8], at offset: inout Int, of file: TorchFile.Bytes) throws {
      func damaged(_ reason: String) -> TorchFileError { file.error(.damagedArchive(reason)) }
      guard directory.count - offset >= Self.byteCount,
        directory.integer(UInt32.self, at: offset) == 0x0201_4B50
      else { throw damaged("its directory ends too early") }
      let flags = directory.integer(UInt16.self, at: offset + 8)
      let method = directory.integer(UInt16.self, at: offset + 10)
      let nameCount = Int(directory.integer(UInt16.self, at: offset + 28))
      let extraCount = Int(directory.integer(UInt16.self, at: offset + 30))
      let commentCount = Int(directory.integer(UInt16.self, at: offset + 32))
      let nameStart = offset + Self.byteCount
      guard directory.count - nameStart >= nameCount + extraCount + commentCount else {
        throw damaged("its directory ends too early")
      }
      name = String(decoding: directory[nameStart..<nameStart + nameCount], as: UTF8.self)
      guard method == 0, flags & 1 == 0 else { throw file.error(.compressedRecord(name)) }
      var sizes = Sizes(
        full: UInt64(directory.integer(UInt32.self, at: offset + 24)),
        stored: UInt64(directory.integer(UInt32.self, at: offset + 20)),
        offset: UInt64(directory.integer(UInt32.self, at: offset + 42)))
      let extraStart = nameStart + nameCount
      guard sizes.take(directory[extraStart..<extraStart + extraCount]) else {
        throw damaged("the sizes of record '\(name)' are missing")
      }
      guard sizes.full == sizes.stored, sizes.full <= file.byteCount,
        sizes.offset <= file.byteCount - Self.localByteCount
      else { throw damaged("record '\(name)' lies outside the file") }
      byteCount = Int(sizes.full)
      headerOffset = Int(sizes.offset)
      offset = extraStart + extraCount + commentCount
    }

    /// Where the data stands, which the record's own header says.
    func dataRange(in file: TorchFile.Bytes, before limit: Int) throws -> Range<Int> {
      let header = try file.read(headerOffset..<headerOffset + Self.localByteCount)
      guard header.integer(UInt32.self, at: 0) == 0x0403_4B50 else {
        throw file.error(.damagedArchive("record '\(name)' has no header"))
      }
      let start =
        headerOffset + Self.localByteCount + Int(header.integer(UInt16.self, at: 26))
        + Int(header.integer(UInt16.self, at: 28))
      guard start <= limit, byteCount <= limit - start else {
        throw file.error(.damagedArchive("record '\(name)' lies outside the file"))
      }
      return start..<start + byteCount
    }
  }

  private struct Sizes {
    var full: UInt64
    var stored: UInt64
    var offset: UInt64

    /// Takes those that do not fit 32 bits from the extra field 1, which has them in this order.
    /// - Returns: whether it has all that are missing
    mutating func take(_ extra: ArraySlice<UInt8>) -> Bool {
      let isMissing = [full, stored, offset].map { $0 == 0xFFFF_FFFF }
      guard isMissing.contains(true) else { return true }
      let extra = Array(extra)
      var place = 0
      while extra.count - place >= 4 {
        let count = Int(extra.integer(UInt16.self, at: place + 2))
        guard extra.count - place - 4 >= count else { return false }
        if extra.integer(UInt16.self, at: place) == 1 {
          let needed = isMissing.count { $0 }
          guard count >= 8 * needed else { return false }
          var values = (0..<needed).map { extra.integer(UInt64.self, at: place + 4 + 8 * $0) }[...]
          if isMissing[0] { full = values.removeFirst() }
          if isMissing[1] { stored = values.removeFirst() }
          if isMissing[2] { offset = values.removeFirst() }
          return true
        }
        place += 4 + count
      }
      return false
    }
  }
}

extension [UInt8] {
  /// A little-endian number, which lies inside.
  func integer<Value: FixedWidthInteger>(_ type: Value.Type, at offset: Int) -> Value {
    self[offset..<offset + Value.bitWidth / 8].reversed().reduce(0) {
      $0 << 8 | Value(truncatingIfNeeded: $1)
    }
  }
}
