import CMPI

/// MPI, through the library that `tools/build-mpi` makes.
@safe final class MPITransport: RankTransport {
  private var table: quantease_mpi

  /// - Parameter path: of the library
  /// - Throws: ``RankError/noLibrary(path:reason:)``
  init(library path: String) throws(RankError) {
    var table = quantease_mpi()
    var message = [CChar](repeating: 0, count: 512)
    let error = unsafe quantease_mpi_open(path, &table, &message, Int32(message.count))
    guard error == 0 else {
      let text = message.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
      throw .noLibrary(path: path, reason: String(decoding: text, as: UTF8.self))
    }
    self.table = table
  }

  var rank: Int { Int(table.rank) }
  var count: Int { Int(table.size) }
  var library: String {
    unsafe withUnsafeBytes(of: table.library) {
      unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
    }
  }

  func send(_ bytes: UnsafeRawBufferPointer, to rank: Int) throws(RankError) -> Int {
    var request: Int32 = 0
    try check(
      "sending", unsafe table.send(bytes.baseAddress, Int32(bytes.count), Int32(rank), &request))
    return Int(request)
  }

  func receive(_ bytes: UnsafeMutableRawBufferPointer, from rank: Int) throws(RankError) -> Int {
    var request: Int32 = 0
    try check(
      "receiving", unsafe table.receive(bytes.baseAddress, Int32(bytes.count), Int32(rank), &request))
    return Int(request)
  }

  func isDone(_ request: Int) throws(RankError) -> Bool {
    var isDone: Int32 = 0
    try check("a transfer", unsafe table.poll(Int32(request), &isDone))
    return isDone != 0
  }

  func finish() throws(RankError) { try check("finishing", table.finish()) }

  private func check(_ operation: String, _ code: Int32) throws(RankError) {
    if code != 0 { throw .transport(operation: operation, code: Int(code)) }
  }
}
