/// Carries bytes between the ranks of a job. All calls come from one thread.
///
/// What one rank sends to another arrives whole and in the order in which it was sent.
@safe public protocol RankTransport: AnyObject {
  var rank: Int { get }
  var count: Int { get }
  /// What carries them, for messages.
  var library: String { get }

  /// Begins to send. The memory stays as it is until the request is done.
  /// - Returns: a request for ``isDone(_:)``
  /// - Throws: ``RankError``
  func send(_ bytes: UnsafeRawBufferPointer, to rank: Int) throws(RankError) -> Int

  /// Begins to receive exactly as many bytes as the memory holds.
  func receive(_ bytes: UnsafeMutableRawBufferPointer, from rank: Int) throws(RankError) -> Int

  /// Whether a request is done, which is asked until it is, and not again.
  func isDone(_ request: Int) throws(RankError) -> Bool

  /// Leaves; every rank does, and nothing is on its way any more.
  func finish() throws(RankError)
}
