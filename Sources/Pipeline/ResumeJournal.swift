import ActivationCache
import Export
import FoundationEssentials
import Quantization
import Synchronization
import SystemIO
import Tensors

/// The quantized linears of an unfinished run, in one file that another process can go on from.
///
/// A record for every linear: its codes, grid and outliers as the solver left them, independent of the formats
/// that are being written. ``append(_:row:)`` returns when the record is on the disk; whatever ends the process,
/// at most the linear in work is lost, with a GPU the one before, which is still written, and of several ranks
/// their stage's. A record that is not whole,
/// at the end of the file, is not there.
///
///     record   "QELINEAR", payload bytes (u64), checksum of the payload (u64), payload
///     payload  bytes of the header (u64), header (JSON), scales, offsets, units (fp32), codes, outliers
///
/// Numbers are little-endian. The first record's header names the job and the sizes that the run computes with.
final class ResumeJournal: Sendable {
  /// What the first record says.
  struct Head: Codable, Equatable {
    static let version = 4
    var version = Head.version
    let identity: String
    /// With a device the last digits of sums depend on these.
    let batchSamples: Int
    let panelRows: Int
    /// See ``ComputeBackend/kernels(for:)``. All that is computed depends on them in its last digits.
    let kernels: String
    /// What was decided when the run began; nil where nobody asked for a rotation.
    var rotation: Report.Rotation?
    /// nil where bits are as the settings say.
    var allocation: Report.Allocation?
    /// nil where nobody asked for tuned norms, and in journals of earlier versions, which did not keep it.
    var tuning: TuningDecision?
  }

  /// What a linear's record says ahead of its numbers.
  private struct LinearHead: Codable {
    let row: Report.Linear
    let scaleTypes: [String]
    let coding: GridCoding
    let outliers: OutlierShape?
  }

  fileprivate struct OutlierShape: Codable {
    let isStructured: Bool
    let values: Int
    let columns: Int
  }

  private struct Contents {
    var head: Head?
    var end = 0
    /// The linears that are done, in order.
    var linears: [Record] = []
  }

  /// Where a linear's record is.
  private struct Record {
    let row: Report.Linear
    let path: String
    let start: Int

    var name: String { row.name }
  }

  private static let magic: [UInt8] = Array("QELINEAR".utf8)
  private static let preambleByteCount = 24

  let path: String
  private let file: OutputFile
  /// Of the run's own file, and of those that were read besides.
  private let contents: Mutex<Contents>
  /// What the job was begun with; nil for a new one.
  let head: Head?
  private let reservesSpace: Bool

  /// Opens the journal, or makes an empty one. One of another job, or of another version, is emptied.
  /// - Throws: ``FileError``
  init(_ place: ResumePlace) throws {
    path = place.journal
    var own = Contents()
    if let read = try Self.read(path, of: place) { own = read } else { try FileSystem.removeTree(path) }
    file = try OutputFile(resuming: path)
    head = try own.head ?? Self.head(of: place)
    var isFirst = true
    for earlier in place.earlierJournals {
      guard let read = try Self.read(earlier, of: place), read.head == head else { continue }
      isFirst = false
      let known = Set(own.linears.map(\.name))
      own.linears += read.linears.filter { !known.contains($0.name) }
    }
    // What others have reserved for the same linears stays taken until the job is over.
    reservesSpace = isFirst
    contents = Mutex(own)
  }

  /// What a job was begun with, as the first of its journals says; nil where it has not begun, or was begun otherwise.
  /// - Throws: ``FileError``
  static func head(of place: ResumePlace) throws -> Head? {
    for path in place.earlierJournals + [place.journal] {
      if let head = try open(path, of: place)?.head { return head }
    }
    return nil
  }

  /// Whether the run's own file says what it was begun with.
  var hasBegun: Bool { contents.withLock { $0.head != nil } }

  /// The linears that are done, by earlier processes or this one, with their rows of the report, in order.
  var rows: [Report.Linear] { contents.withLock { $0.linears.map(\.row) } }

  /// Begins a new journal.
  /// - Parameter linears: everything that will be appended, so that its space can be taken now.
  /// - Throws: ``FileError``, with ENOSPC if it does not fit on the disk
  func begin(_ head: Head, for linears: [LinearDescription]) throws {
    if reservesSpace { try file.reserve(linears.reduce(4_096) { $0 + Self.byteCount(of: $1) }) }
    try contents.withLock { contents in
      precondition(contents.head == nil, "the journal has begun")
      contents.end = try write(try JournalPayload(header: head), at: 0)
      contents.head = head
    }
  }

  /// Writes a linear and returns when it is on the disk.
  func append(_ linear: QuantizedLinear, row: Report.Linear) throws {
    let payload = try Self.payload(of: linear, row: row)
    try contents.withLock { contents in
      let start = contents.end
      contents.end = try write(payload, at: start)
      contents.linears.append(Record(row: row, path: path, start: start))
    }
  }

  /// A linear's payload, which ranks also send one another.
  static func payload(of linear: QuantizedLinear, row: Report.Linear) throws -> JournalPayload {
    var payload = try JournalPayload(
      header: LinearHead(
        row: row, scaleTypes: linear.grid.format.scaleTypes.map(\.rawValue),
        coding: linear.grid.format.coding, outliers: linear.outliers.map { OutlierShape($0) }))
    for matrix in linear.grid.matrices { matrix.withSpan { payload.append($0) } }
    payload.append(codes: linear.codes, bits: linear.grid.format.bitWidth.rawValue)
    switch linear.outliers {
    case .unstructured(let values, let columns, let rowOffsets):
      payload.append(values)
      payload.append(columns)
      payload.append(rowOffsets)
    case .structured(let values, let columns):
      payload.append(values)
      payload.append(columns)
    case nil: break
    }
    return payload
  }

  /// A linear and its row, of a payload; nil for bytes that are none.
  static func linear(ofPayload bytes: [UInt8]) -> (linear: QuantizedLinear, row: Report.Linear)? {
    unsafe bytes.withUnsafeBytes { raw in
      let payload = unsafe RawSpan(_unsafeBytes: raw)
      var reader = JournalPayloadReader()
      guard let row = reader.header(LinearHead.self, of: payload)?.row, let linear = linear(payload) else {
        return nil
      }
      return (linear, row)
    }
  }

  /// A linear that is done; nil if it is not.
  /// - Throws: ``PipelineError/damagedJournal(path:linear:)`` if its record is not what was written
  func linear(_ name: String) throws -> QuantizedLinear? {
    try withPayload(name) { payload in
      guard let linear = Self.linear(payload), linear.name == name else { return nil }
      return linear
    }
  }

  /// The payload of a linear that is done.
  /// - Throws: as ``linear(_:)``
  func payload(_ name: String) throws -> [UInt8] {
    let bytes = try withPayload(name) { payload in
      var reader = ByteReader()
      return reader.values(UInt8.self, count: payload.byteCount, of: payload)
    }
    guard let bytes else { preconditionFailure("\(name) is done") }
    return bytes
  }

  /// - Parameter body: nil for what is no linear's
  private func withPayload<Value>(_ name: String, _ body: (RawSpan) -> Value?) throws -> Value? {
    guard let record = contents.withLock({ contents in contents.linears.first { $0.name == name } }) else {
      return nil
    }
    let mapped = try MappedFile(path: record.path, symlinks: .refuse)
    guard let payload = Self.payload(in: mapped, at: record.start),
      let value = mapped.withBytes(payload, body)
    else { throw PipelineError.damagedJournal(path: record.path, linear: name) }
    return value
  }

  /// Whether a linear is done.
  func holds(_ name: String) -> Bool {
    contents.withLock { contents in contents.linears.contains { $0.name == name } }
  }

  // MARK: Writing

  /// Writes a record and gives the place behind it. Its preamble comes last: until then nothing is there.
  private func write(_ payload: JournalPayload, at start: Int) throws -> Int {
    let bytes = payload.bytes
    var preamble = JournalPayload()
    preamble.append(Self.magic)
    preamble.append([UInt64(bytes.count), arrayChecksum(bytes)])
    try file.write(bytes, at: start + Self.preambleByteCount)
    try file.write(preamble.bytes, at: start)
    do { try file.synchronize() } catch {
      // What the disk refused may still be read from memory, by a next process that would believe it: it is struck
      // out. If that fails as well, its error is no other.
      try? file.write([UInt8](repeating: 0, count: preamble.bytes.count), at: start)
      throw error
    }
    return start + Self.preambleByteCount + bytes.count
  }

  /// An upper bound of a record's bytes.
  private static func byteCount(of linear: LinearDescription) -> Int {
    guard let format = linear.gridFormat else { return 0 }
    let weights = linear.outFeatures * linear.inFeatures
    let groups = linear.outFeatures * format.groupSize.groupCount(inFeatures: linear.inFeatures)
    let outliers =
      switch linear.outliers {
      case .unstructured(let count): 8 * count + 8 * (linear.outFeatures + 1)
      case .structured(let columns): 4 * columns * (linear.outFeatures + 1)
      case nil: 0
      }
    return 4_096 + 4 * wordCount(codes: weights, bits: format.bitWidth.rawValue) + 16 * groups + outliers
  }

  // MARK: Reading

  /// A journal of a job, of which no more than the first record has been read.
  private struct Opened {
    let file: MappedFile
    let head: Head
    /// Where the first linear begins.
    let end: Int
  }

  /// - Returns: nil where there is no such file, or it is another job's or another version's
  private static func open(_ path: String, of place: ResumePlace) throws -> Opened? {
    guard try FileSystem.exists(path) else { return nil }
    let file = try MappedFile(path: path, symlinks: .refuse)
    guard let payload = payload(in: file, at: 0) else { return nil }
    let head = file.withBytes(payload) { bytes in
      var reader = JournalPayloadReader()
      return reader.header(Head.self, of: bytes)
    }
    guard let head, head.identity == place.identity, head.version == Head.version else { return nil }
    return Opened(file: file, head: head, end: payload.upperBound)
  }

  /// What a file holds of a job, up to the last record that is whole; nil where it is none of that job's.
  private static func read(_ path: String, of place: ResumePlace) throws -> Contents? {
    guard let opened = try open(path, of: place) else { return nil }
    var contents = Contents()
    (contents.head, contents.end) = (opened.head, opened.end)
    while let payload = payload(in: opened.file, at: contents.end) {
      let row = opened.file.withBytes(payload) { bytes in
        var reader = JournalPayloadReader()
        return reader.header(LinearHead.self, of: bytes)?.row
      }
      guard let row else { break }
      contents.linears.append(Record(row: row, path: path, start: contents.end))
      contents.end = payload.upperBound
    }
    return contents
  }

  /// The payload of the record at `offset`, if there is a whole one.
  private static func payload(in file: MappedFile, at offset: Int) -> Range<Int>? {
    let start = offset + preambleByteCount
    guard start <= file.byteCount else { return nil }
    let (isRecord, byteCount, sum) = file.withBytes(offset..<start) { bytes in
      var reader = JournalPayloadReader()
      return (
        reader.values(UInt8.self, count: 8, of: bytes) == magic,
        reader.values(UInt64.self, count: 1, of: bytes)?.first,
        reader.values(UInt64.self, count: 1, of: bytes)?.first
      )
    }
    guard isRecord, let byteCount = byteCount.flatMap(Int.init(exactly:)),
      byteCount <= file.byteCount - start
    else { return nil }
    let payload = start..<start + byteCount
    return file.withBytes(payload) { checksum(of: $0) } == sum ? payload : nil
  }

  /// The linear of a record whose checksum was right: what is missing then was never written.
  private static func linear(_ payload: RawSpan) -> QuantizedLinear? {
    var reader = JournalPayloadReader()
    guard let head = reader.header(LinearHead.self, of: payload), head.row.shape.count == 2,
      let bits = BitWidth(rawValue: head.row.bits), let groupSize = GroupSize(head.row.groupSize)
    else { return nil }
    let (rows, columns) = (head.row.shape[0], head.row.shape[1])
    let grid = Grid(
      format: GridFormat(
        bitWidth: bits, groupSize: groupSize, isSymmetric: head.row.symmetric,
        coding: head.coding, scaleTypes: head.scaleTypes.compactMap(DType.init(rawValue:))),
      outFeatures: rows, inFeatures: columns)
    for matrix in grid.matrices {
      guard let values = reader.values(Float.self, count: matrix.count, of: payload) else { return nil }
      matrix.copy(from: Matrix(rows: matrix.rows, columns: matrix.columns, values))
    }
    guard let codes = reader.codes(count: rows * columns, bits: bits.rawValue, of: payload) else {
      return nil
    }
    var outliers: Outliers?
    if let shape = head.outliers {
      guard let values = reader.values(Float.self, count: shape.values, of: payload),
        let places = reader.values(Int32.self, count: shape.columns, of: payload)
      else { return nil }
      if shape.isStructured {
        outliers = .structured(values: values, columns: places)
      } else {
        guard let offsets = reader.values(Int64.self, count: rows + 1, of: payload) else { return nil }
        outliers = .unstructured(values: values, columns: places, rowOffsets: offsets)
      }
    }
    return QuantizedLinear(name: head.row.name, codes: codes, grid: grid, outliers: outliers)
  }
}

extension ResumeJournal.OutlierShape {
  fileprivate init(_ outliers: Outliers) {
    switch outliers {
    case .unstructured(let values, let columns, _):
      self.init(isStructured: false, values: values.count, columns: columns.count)
    case .structured(let values, let columns):
      self.init(isStructured: true, values: values.count, columns: columns.count)
    }
  }
}
