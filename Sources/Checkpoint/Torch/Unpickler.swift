import Tensors

/// A machine that reads the pickle of a state dict and can do nothing else.
///
/// A pickle is a program. This one knows the instructions that Python's pickler writes for a dictionary of tensors, and of
/// the callables that a program can name those alone that make up tensors; their effect is written here. Anything else is
/// refused by name, and nothing is imported, called or executed. Values are numbers of places in flat arrays: however deep
/// a pickle nests, nothing here does, and memory grows with its length.
/// - SeeAlso: Lib/pickletools.py of CPython describes the instructions
struct Unpickler {
  /// The tensor of a state dict, in a storage.
  struct Tensor {
    var storage: Int
    /// In elements, from the storage's first.
    var offset: Int
    var shape: [Int]
    var strides: [Int]
  }

  /// Memory that tensors share.
  struct Storage: Hashable {
    let key: String
    let dtype: DType
    /// In elements.
    let count: Int
  }

  private enum Value {
    case none
    case bool
    case integer(Int)
    /// Bytes of the pickle.
    case text(Int32, Int32)
    /// What no tensor is made of: numbers with a fraction, bytes, long integers.
    case other
    case global(Global)
    /// Places in `elements`.
    case tuple(Int32, Int32)
    /// What is put into it is an entry of its own place.
    case list, dictionary
    case storage(Int32)
    case tensor(Int32)
  }

  private enum Global: Hashable {
    case orderedDictionary, rebuildTensor, rebuildParameter
    case storageType(DType)
  }

  private static let globals: [String: Global] = [
    "collections.OrderedDict": .orderedDictionary,
    "torch._utils._rebuild_tensor_v2": .rebuildTensor,
    "torch._utils._rebuild_parameter": .rebuildParameter,
    "torch.DoubleStorage": .storageType(.float64),
    "torch.FloatStorage": .storageType(.float32),
    "torch.HalfStorage": .storageType(.float16),
    "torch.BFloat16Storage": .storageType(.bfloat16),
    "torch.LongStorage": .storageType(.int64),
    "torch.IntStorage": .storageType(.int32),
    "torch.ShortStorage": .storageType(.int16),
    "torch.CharStorage": .storageType(.int8),
    "torch.ByteStorage": .storageType(.uint8),
    "torch.BoolStorage": .storageType(.bool),
  ]

  /// Of a file's pickles together.
  static let maximumByteCount = 1 << 24
  private static let maximumValueCount = 1 << 20

  private let bytes: [UInt8]
  private let file: TorchFile.Bytes
  /// Where the next instruction stands.
  private(set) var position: Int
  private var values: [Value] = []
  private var elements: [Int32] = []
  /// What was put into lists and dictionaries, in order; the key is −1 in a list.
  private var entries: [(owner: Int32, key: Int32, value: Int32)] = []
  private var stack: [Int32] = []
  private var marks: [Int] = []
  private var memo: [Int32] = []
  private(set) var storages: [Storage] = []
  private var storagePlaces: [Storage: Int32] = [:]
  private var tensors: [Tensor] = []

  /// - Parameter start: where the pickle begins in `bytes`, which may go on after it
  init(_ bytes: [UInt8], from start: Int = 0, of file: TorchFile.Bytes) {
    self.bytes = bytes
    self.file = file
    position = start
  }

  // MARK: What a pickle holds

  /// Runs the pickle to its end; its result is asked for by the functions that follow.
  /// - Throws: ``TorchFileError``
  private mutating func run() throws(TorchFileError) -> Int32 {
    while true {
      let code = try byte()
      if code == UInt8(ascii: ".") { return try pop() }
      try execute(code)
    }
  }

  /// Reads a pickle that is a dictionary of tensors.
  mutating func stateDict() throws(TorchFileError) -> [(name: String, tensor: Tensor)] {
    let root = try run()
    guard case .dictionary = values[Int(root)] else { throw file.error(.notADictionary) }
    var result: [(name: String, tensor: Tensor)] = []
    for entry in entries where entry.owner == root {
      guard case .text(let start, let count) = values[Int(entry.key)] else {
        throw file.error(.notADictionary)
      }
      let name = text(start, count)
      guard case .tensor(let place) = values[Int(entry.value)] else {
        throw file.error(.notATensor(key: name))
      }
      result.append((name, tensors[Int(place)]))
    }
    return result
  }

  /// Reads a pickle that is a list of texts.
  mutating func texts() throws(TorchFileError) -> [String] {
    let root = try run()
    guard case .list = values[Int(root)] else { throw damaged("there is no list") }
    var texts: [String] = []
    for entry in entries where entry.owner == root {
      guard case .text(let start, let count) = values[Int(entry.value)] else {
        throw damaged("there is no list of names")
      }
      texts.append(text(start, count))
    }
    return texts
  }

  /// Reads a pickle of whatever this machine knows, for the sake of what follows it.
  mutating func skip() throws(TorchFileError) { _ = try run() }

  // MARK: Instructions

  private mutating func execute(_ code: UInt8) throws(TorchFileError) {
    switch code {
    case 0x80:  // PROTO
      guard try byte() <= 5 else { throw damaged("an unknown version") }
    case 0x95: _ = try take(8)  // FRAME
    case UInt8(ascii: "("): marks.append(stack.count)
    case UInt8(ascii: "0"): _ = try pop()
    case UInt8(ascii: "1"): _ = try popToMark()
    case UInt8(ascii: "2"): stack.append(try top())
    case UInt8(ascii: "N"): try push(.none)
    case 0x88, 0x89: try push(.bool)  // NEWTRUE, NEWFALSE
    case UInt8(ascii: "K"): try push(.integer(Int(try byte())))
    case UInt8(ascii: "M"): try push(.integer(Int(try number(UInt16.self))))
    case UInt8(ascii: "J"): try push(.integer(Int(try number(Int32.self))))
    case 0x8A: try pushLong(count: Int(try byte()))  // LONG1
    case 0x8B: try pushLong(count: Int(try number(UInt32.self)))  // LONG4
    case UInt8(ascii: "G"): try pushOther(count: 8)  // BINFLOAT
    case 0x8C, UInt8(ascii: "U"): try pushText(count: Int(try byte()))  // SHORT_BINUNICODE, SHORT_BINSTRING
    case UInt8(ascii: "X"), UInt8(ascii: "T"): try pushText(count: Int(try number(UInt32.self)))
    case 0x8D: try pushText(count: Int(clamping: try number(UInt64.self)))  // BINUNICODE8
    case UInt8(ascii: "C"): try pushOther(count: Int(try byte()))  // SHORT_BINBYTES
    case UInt8(ascii: "B"): try pushOther(count: Int(try number(UInt32.self)))  // BINBYTES
    case UInt8(ascii: "c"): try push(.global(try global(named: "\(try line()).\(try line())")))
    case 0x93: try pushGlobalFromStack()  // STACK_GLOBAL
    case UInt8(ascii: ")"): try pushTuple([])
    case UInt8(ascii: "t"): try pushTuple(try popToMark())
    case 0x85: try pushTuple([try pop()])
    case 0x86, 0x87: try pushTuple(try pop(count: code == 0x86 ? 2 : 3))  // TUPLE2, TUPLE3
    case UInt8(ascii: "]"): try push(.list)
    case UInt8(ascii: "l"), UInt8(ascii: "e"): try appendToMark(isNew: code == UInt8(ascii: "l"))
    case UInt8(ascii: "a"): try put([try pop()], isPairs: false)
    case UInt8(ascii: "}"): try push(.dictionary)
    case UInt8(ascii: "s"): try put(try pop(count: 2), isPairs: true)
    case UInt8(ascii: "u"): try put(try popToMark(), isPairs: true)
    case UInt8(ascii: "q"): try memorize(at: Int(try byte()))
    case UInt8(ascii: "r"): try memorize(at: Int(try number(UInt32.self)))
    case 0x94: try memorize(at: memo.count)  // MEMOIZE
    case UInt8(ascii: "h"): try recall(Int(try byte()))
    case UInt8(ascii: "j"): try recall(Int(try number(UInt32.self)))
    case UInt8(ascii: "Q"): try pushStorage(try pop())
    case UInt8(ascii: "R"): try call()
    case UInt8(ascii: "b"): try build()
    default: throw damaged("instruction \(code) is not one of a state dict's")
    }
  }

  private mutating func appendToMark(isNew: Bool) throws(TorchFileError) {
    let items = try popToMark()
    if isNew { try push(.list) }
    try put(items, isPairs: false)
  }

  /// Adds to the list or dictionary on the stack.
  private mutating func put(_ items: ArraySlice<Int32>, isPairs: Bool) throws(TorchFileError) {
    let owner = try top()
    switch values[Int(owner)] {
    case .list where !isPairs:
      for item in items { entries.append((owner, -1, item)) }
    case .dictionary where isPairs && items.count.isMultiple(of: 2):
      for key in stride(from: items.startIndex, to: items.endIndex, by: 2) {
        entries.append((owner, items[key], items[key + 1]))
      }
    default: throw damaged("something is put where nothing can be")
    }
    guard entries.count <= Self.maximumValueCount else { throw file.error(.tooLarge("the pickle is longer")) }
  }

  private mutating func memorize(at place: Int) throws(TorchFileError) {
    // Python's pickler counts up: a memo that is sparse would be one to fill memory with.
    guard place <= memo.count else { throw damaged("a memo out of turn") }
    let value = try top()
    if place == memo.count { memo.append(value) } else { memo[place] = value }
    guard memo.count <= Self.maximumValueCount else { throw file.error(.tooLarge("the pickle is longer")) }
  }

  private mutating func recall(_ place: Int) throws(TorchFileError) {
    guard memo.indices.contains(place) else { throw damaged("an empty place of the memo") }
    stack.append(memo[place])
  }

  // MARK: Tensors

  private mutating func pushStorage(_ identifier: Int32) throws(TorchFileError) {
    // ("storage", class, key, device, elements), and in old files a view, which is none
    guard case .tuple(let start, let count) = values[Int(identifier)], count == 5 || count == 6,
      case .global(.storageType(let dtype)) = element(start, 1),
      case .text(let keyStart, let keyCount) = element(start, 2),
      case .integer(let elementCount) = element(start, 4), elementCount >= 0
    else { throw damaged("what is to be loaded is not a storage") }
    if count == 6 {
      guard case .none = element(start, 5) else { throw damaged("a view of a storage") }
    }
    let storage = Storage(key: text(keyStart, keyCount), dtype: dtype, count: elementCount)
    if let known = storagePlaces[storage] { return try push(.storage(known)) }
    storagePlaces[storage] = Int32(storages.count)
    storages.append(storage)
    try push(.storage(Int32(storages.count - 1)))
  }

  private mutating func call() throws(TorchFileError) {
    let arguments = try pop()
    let callable = try pop()
    guard case .global(let global) = values[Int(callable)],
      case .tuple(let start, let count) = values[Int(arguments)]
    else { throw damaged("a call of what cannot be called") }
    switch global {
    case .orderedDictionary where count == 0: try push(.dictionary)
    case .rebuildTensor where count >= 4:
      guard case .storage(let storage) = element(start, 0), case .integer(let offset) = element(start, 1),
        offset >= 0, let shape = integers(element(start, 2)), let strides = integers(element(start, 3)),
        shape.count == strides.count
      else { throw damaged("a tensor that is none") }
      tensors.append(Tensor(storage: Int(storage), offset: offset, shape: shape, strides: strides))
      try push(.tensor(Int32(tensors.count - 1)))
    case .rebuildParameter where count >= 1:
      guard case .tensor = element(start, 0) else { throw damaged("a parameter that is no tensor") }
      stack.append(elements[Int(start)])
    default: throw damaged("a call with other arguments")
    }
  }

  /// A state dict has attributes, its `_metadata`, which say nothing of tensors.
  private mutating func build() throws(TorchFileError) {
    _ = try pop()
    guard case .dictionary = values[Int(try top())] else { throw damaged("attributes of what has none") }
  }

  private func integers(_ value: Value) -> [Int]? {
    guard case .tuple(let start, let count) = value else { return nil }
    var integers: [Int] = []
    for index in 0..<count {
      guard case .integer(let integer) = element(start, index), integer >= 0 else { return nil }
      integers.append(integer)
    }
    return integers
  }

  private func element(_ start: Int32, _ index: Int32) -> Value {
    values[Int(elements[Int(start + index)])]
  }

  private func global(named name: String) throws(TorchFileError) -> Global {
    guard let global = Self.globals[name] else {
      throw file.error(.forbidden(String(name.prefix(200)), byte: position))
    }
    return global
  }

  private mutating func pushGlobalFromStack() throws(TorchFileError) {
    let names = try pop(count: 2)
    guard case .text(let moduleStart, let moduleCount) = values[Int(names[names.startIndex])],
      case .text(let start, let count) = values[Int(names[names.startIndex + 1])]
    else { throw damaged("a name that is no text") }
    try push(.global(try global(named: "\(text(moduleStart, moduleCount)).\(text(start, count))")))
  }

  // MARK: Stack

  private mutating func push(_ value: Value) throws(TorchFileError) {
    guard values.count < Self.maximumValueCount else { throw file.error(.tooLarge("the pickle is longer")) }
    stack.append(Int32(values.count))
    values.append(value)
  }

  private mutating func pushTuple(_ items: ArraySlice<Int32>) throws(TorchFileError) {
    try push(.tuple(Int32(elements.count), Int32(items.count)))
    elements += items
  }

  private mutating func pushText(count: Int) throws(TorchFileError) {
    let start = position
    _ = try take(count)
    try push(.text(Int32(start), Int32(count)))
  }

  private mutating func pushOther(count: Int) throws(TorchFileError) {
    _ = try take(count)
    try push(.other)
  }

  /// A two's complement of any length.
  private mutating func pushLong(count: Int) throws(TorchFileError) {
    let digits = try take(count)
    guard count <= 8 else { return try push(.other) }
    var value = digits.last.map { $0 >= 0x80 ? -1 : 0 } ?? 0
    for digit in digits.reversed() { value = value << 8 | Int(digit) }
    try push(.integer(value))
  }

  private func top() throws(TorchFileError) -> Int32 {
    guard let value = stack.last, stack.count > marks.last ?? 0 else { throw damaged("an empty stack") }
    return value
  }

  private mutating func pop() throws(TorchFileError) -> Int32 {
    let value = try top()
    stack.removeLast()
    return value
  }

  private mutating func pop(count: Int) throws(TorchFileError) -> ArraySlice<Int32> {
    guard stack.count - (marks.last ?? 0) >= count else { throw damaged("an empty stack") }
    defer { stack.removeLast(count) }
    return stack.suffix(count)
  }

  private mutating func popToMark() throws(TorchFileError) -> ArraySlice<Int32> {
    guard let mark = marks.popLast() else { throw damaged("a mark that is missing") }
    defer { stack.removeSubrange(mark...) }
    return stack[mark...]
  }

  // MARK: Bytes

  private mutating func byte() throws(TorchFileError) -> UInt8 {
    guard position < bytes.count else { throw damaged("its end is missing") }
    position += 1
    return bytes[position - 1]
  }

  private mutating func take(_ count: Int) throws(TorchFileError) -> ArraySlice<UInt8> {
    guard count <= bytes.count - position else { throw damaged("its end is missing") }
    position += count
    return bytes[position - count..<position]
  }

  private mutating func number<Number: FixedWidthInteger>(
    _ type: Number.Type
  ) throws(TorchFileError) -> Number {
    let start = position
    _ = try take(Number.bitWidth / 8)
    return bytes.integer(type, at: start)
  }

  private mutating func line() throws(TorchFileError) -> String {
    guard let end = bytes[position...].firstIndex(of: UInt8(ascii: "\n")) else {
      throw damaged("its end is missing")
    }
    defer { position = end + 1 }
    return String(decoding: bytes[position..<end], as: UTF8.self)
  }

  private func text(_ start: Int32, _ count: Int32) -> String {
    String(decoding: bytes[Int(start)..<Int(start + count)], as: UTF8.self)
  }

  private func damaged(_ reason: String) -> TorchFileError {
    file.error(.damagedPickle(reason, byte: position))
  }
}
