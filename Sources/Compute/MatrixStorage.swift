import Tensors

/// The memory that a backend computes in.
///
/// Operations take matrices that their backend has made, unless they say otherwise; parts of them are as good. What they
/// hold is reached from outside by ``withHostMatrix(_:for:_:)`` alone.
public protocol MatrixStorage: Sendable {
  /// The memory of a device that matrices are in; nil where they are in the host's.
  var deviceMemory: (any DeviceMemoryGauge)? { get }

  /// A matrix of zeros.
  func makeMatrix(rows: Int, columns: Int) -> Matrix

  /// Lends a matrix in the host's memory that holds what `matrix` does.
  ///
  /// On an accelerator it is a copy, and one of whatever size is asked for: large matrices are lent some rows at a time.
  /// - Parameters:
  ///   - access: what `body` does with it
  ///   - body: gets a matrix of the same shape, which is valid until it returns
  func withHostMatrix<Result, Failure: Error>(
    _ matrix: Matrix, for access: HostAccess, _ body: (_ host: Matrix) throws(Failure) -> Result
  ) throws(Failure) -> Result

  /// Copies every element of `source` to `destination`, which has the same shape.
  func copy(_ source: Matrix, into destination: Matrix)

  /// Sets every element.
  func fill(_ matrix: Matrix, with value: Float)

  /// Converts values as a file has them, float32, float16 or bfloat16, into a matrix of the backend's.
  func convert(_ stored: RawSpan, _ type: DType, into matrix: Matrix)

  /// Whether every element is finite.
  func isFinite(_ matrix: Matrix) -> Bool

  /// Rounds states to a type, in place, and keeps them in a device's memory or where it copies them to by itself.
  /// - Returns: nil if one of them has no value in that type, and from a backend without a device, which keeps nothing
  func keep(_ states: Matrix, as type: DType, in place: KeptStates.Place) -> KeptStates?

  /// Copies back what was kept; any number of times.
  func restore(_ kept: KeptStates, into states: Matrix)

  /// Copies codes, whole numbers from 0 to 255, to their place among a linear's.
  /// - Parameters:
  ///   - panel: `[rows, inFeatures]`
  ///   - codes: `[outFeatures, inFeatures]`
  func downloadCodes(_ panel: Matrix, to codes: inout [UInt8], firstRow: Int)

  /// Copies codes from their place among a linear's.
  /// - Parameters: as for the other way
  func uploadCodes(_ codes: [UInt8], firstRow: Int, to panel: Matrix)
}

/// States that a device keeps, in the type that the activation cache would have them in.
public struct KeptStates: Sendable {
  public enum Place: Sendable {
    case device
    /// Memory of the host's that only the device reads and writes.
    case host
  }

  public let rows: Int
  public let columns: Int
  public let type: DType
  /// What the device calls the type.
  public let number: Int
  public let memory: any MatrixMemory

  public init(rows: Int, columns: Int, type: DType, number: Int, memory: any MatrixMemory) {
    self.rows = rows
    self.columns = columns
    self.type = type
    self.number = number
    self.memory = memory
  }
}

/// What the host does with a matrix that a backend lends it.
public enum HostAccess: Sendable {
  case reading
  /// All elements are written; what they were does not matter.
  case writing
  case changing
}

extension MatrixStorage {
  public var deviceMemory: (any DeviceMemoryGauge)? { nil }

  public func convert(_ stored: RawSpan, _ type: DType, into matrix: Matrix) {
    preconditionFailure("a backend without a device has its weights converted by the host")
  }

  public func isFinite(_ matrix: Matrix) -> Bool {
    withHostMatrix(matrix, for: .reading) { $0.firstNonFinite == nil }
  }

  public func keep(_ states: Matrix, as type: DType, in place: KeptStates.Place) -> KeptStates? { nil }

  public func restore(_ kept: KeptStates, into states: Matrix) {
    preconditionFailure("a backend without a device keeps nothing")
  }

  /// A copy in the backend's memory.
  public func copy(of matrix: Matrix) -> Matrix {
    let result = makeMatrix(rows: matrix.rows, columns: matrix.columns)
    copy(matrix, into: result)
    return result
  }

  /// A copy in the backend's memory of a matrix in the host's.
  public func upload(_ host: Matrix) -> Matrix {
    let result = makeMatrix(rows: host.rows, columns: host.columns)
    withHostMatrix(result, for: .writing) { $0.copy(from: host) }
    return result
  }

  /// A copy in the host's memory.
  public func download(_ matrix: Matrix) -> Matrix {
    withHostMatrix(matrix, for: .reading) { $0.copy() }
  }

  public func downloadCodes(_ panel: Matrix, to codes: inout [UInt8], firstRow: Int) {
    let place = panel.place(ofRow: firstRow, among: codes.count)
    withHostMatrix(panel, for: .reading) { host in
      host.withSpan { span in
        unsafe codes.withUnsafeMutableBufferPointer { codes in
          for index in 0..<span.count {
            // The last bits of 2²³ + n are n: a conversion that the compiler vectorises, as it has nothing to trap.
            let bits = unsafe (span[unchecked: index] + 0x1p23).bitPattern
            unsafe codes[place + index] = UInt8(truncatingIfNeeded: bits)
          }
        }
      }
    }
  }

  public func uploadCodes(_ codes: [UInt8], firstRow: Int, to panel: Matrix) {
    let place = panel.place(ofRow: firstRow, among: codes.count)
    withHostMatrix(panel, for: .writing) { host in
      host.withMutableSpan { span in
        unsafe codes.withUnsafeBufferPointer { codes in
          for index in 0..<span.count {
            unsafe span[unchecked: index] = Float(codes[place + index])
          }
        }
      }
    }
  }
}

extension Matrix {
  /// Where the panel's elements begin among `total` elements of as many columns.
  fileprivate func place(ofRow firstRow: Int, among total: Int) -> Int {
    precondition(firstRow >= 0 && firstRow * columns + count <= total, "rows outside the linear")
    return firstRow * columns
  }
}

/// A backend whose memory is the host's: matrices of both are the same, and nothing is copied.
public protocol HostMemoryBackend: MatrixStorage {}

extension HostMemoryBackend {
  public func makeMatrix(rows: Int, columns: Int) -> Matrix { Matrix(rows: rows, columns: columns) }

  public func withHostMatrix<Result, Failure: Error>(
    _ matrix: Matrix, for access: HostAccess, _ body: (_ host: Matrix) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try body(matrix)
  }

  public func copy(_ source: Matrix, into destination: Matrix) { destination.copy(from: source) }

  public func fill(_ matrix: Matrix, with value: Float) { matrix.fill(value) }
}
