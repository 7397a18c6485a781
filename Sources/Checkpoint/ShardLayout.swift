/// What stands where in one shard that is to be written.
struct ShardLayout {
  /// The file up to the first tensor: the header's length and the header.
  let header: [UInt8]
  /// The tensors, each with its first byte's place in the file.
  let tensors: [(tensor: TensorPlan, offset: Int)]
  let fileByteCount: Int

  /// Divides tensors among shards in their order, each as full as the limit allows.
  static func layouts(
    of plan: [TensorPlan], sizeLimit: Int, metadata: [String: String]
  ) -> [ShardLayout] {
    var shards: [[TensorPlan]] = [[]]
    var byteCount = 0
    for tensor in plan {
      if byteCount + tensor.byteCount > sizeLimit, !shards[shards.count - 1].isEmpty {
        shards.append([])
        byteCount = 0
      }
      shards[shards.count - 1].append(tensor)
      byteCount += tensor.byteCount
    }
    return shards.map { ShardLayout($0, metadata: metadata) }
  }

  private init(_ plan: [TensorPlan], metadata: [String: String]) {
    // Wide elements first: behind a header of whole words, every tensor is then aligned to its type.
    let ordered = plan.sorted { $0.dtype.bitWidth ?? 0 > $1.dtype.bitWidth ?? 0 }
    var entries: [String] = []
    if !metadata.isEmpty {
      let strings = JSONValue.object(metadata.mapValues { .string($0) })
      entries.append("\(JSONValue.quoted(SafetensorsHeader.metadataKey)):\(strings.compactText)")
    }
    var starts: [Int] = []
    var end = 0
    for tensor in ordered {
      let entry: JSONValue = [
        "dtype": .string(tensor.dtype.rawValue),
        "shape": .array(tensor.shape.map { .integer($0) }),
        "data_offsets": [.integer(end), .integer(end + tensor.byteCount)],
      ]
      entries.append("\(JSONValue.quoted(tensor.name)):\(entry.compactText)")
      starts.append(end)
      end += tensor.byteCount
    }
    var json = Array("{\(entries.joined(separator: ","))}".utf8)
    json += repeatElement(UInt8(ascii: " "), count: (8 - json.count % 8) % 8)
    precondition(
      json.count <= SafetensorsHeader.maximumByteCount, "a shard of too many tensors for a header")
    let length = UInt64(json.count)
    header =
      (0..<SafetensorsHeader.lengthFieldByteCount).map {
        UInt8(truncatingIfNeeded: length >> (8 * UInt64($0)))
      } + json
    let dataStart = header.count
    tensors = zip(ordered, starts).map { ($0, dataStart + $1) }
    fileByteCount = dataStart + end
  }
}
