// Judges images with an exported detector, with the C++ API of ONNX Runtime alone.
//
//     onnx_client detector.onnx image.ppm ...
//
// Prints a line for each image: verdict, p-value and path, separated by tabs. The exit code is 1 if an image cannot be
// read, 3 if the images are undecided, and 0 otherwise, as of gaussad_pl.predict.
//
// No image library is assumed: images are binary PPM files of 8 bits, or whatever a camera fills an Image with.
#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdio>
#include <cstdlib>

#include "ppm.hpp"

struct Judgement {
    std::string verdict;
    float p_value;
};

class Client {
public:
    explicit Client(const char* path) : session_(environment_, path, Ort::SessionOptions{}) {
        Ort::AllocatorWithDefaultOptions allocator;
        const auto held = session_.GetModelMetadata().LookupCustomMetadataMapAllocated("gaussad_pl", allocator);
        if (!held) throw std::runtime_error("not a detector from gaussad_pl.export");
        const std::string header = held.get();
        height_ = std::atoi(value(header, "height"));
        width_ = std::atoi(value(header, "width"));
        const std::string fit = value(header, "fit");
        fit_ = fit.compare(0, 5, "\"pad\"") == 0 ? Fit::pad : fit.compare(0, 6, "\"crop\"") == 0 ? Fit::crop : Fit::squash;
        const std::string threshold = value(header, "threshold");
        decides_ = threshold.compare(0, 4, "null") != 0;
        if (decides_) threshold_ = std::strtod(threshold.c_str(), nullptr);
    }

    // False if there were too few calibration images for a threshold: every image is undecided.
    bool decides() const { return decides_; }

    Judgement judge(const Image& image) {
        Image input_image = fitted(image, width_, height_, fit_);
        const std::array<std::int64_t, 4> shape{1, height_, width_, 3};
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        const auto input = Ort::Value::CreateTensor<std::uint8_t>(
            memory, input_image.pixels.data(), input_image.pixels.size(), shape.data(), shape.size());
        const char* inputs[] = {"images"};
        const char* outputs[] = {"score", "p_value"};
        const auto found = session_.Run(Ort::RunOptions{nullptr}, inputs, &input, 1, outputs, 2);
        const double score = found[0].GetTensorData<float>()[0];
        const float p_value = found[1].GetTensorData<float>()[0];
        return {!decides_ ? "undecided" : score <= threshold_ ? "good" : "bad", p_value};
    }

private:
    // The place of a value in the header, which is JSON without nested keys of these names.
    static const char* value(const std::string& header, const std::string& name) {
        const auto place = header.find('"' + name + "\": ");
        if (place == std::string::npos) throw std::runtime_error("the detector has no " + name);
        return header.c_str() + place + name.size() + 4;
    }

    Ort::Env environment_{ORT_LOGGING_LEVEL_ERROR, "gaussad_pl"};
    Ort::Session session_;
    int height_ = 0, width_ = 0;
    Fit fit_ = Fit::squash;
    bool decides_ = false;
    double threshold_ = 0;
};

int main(int count, char** arguments) {
    if (count < 3) {
        std::fprintf(stderr, "usage: onnx_client detector.onnx image.ppm ...\n");
        return 2;
    }
    try {
        Client client(arguments[1]);
        int code = client.decides() ? 0 : 3;
        for (int i = 2; i < count; ++i) {
            try {
                const Judgement found = client.judge(read_ppm(arguments[i]));
                std::printf("%s\t%.9g\t%s\n", found.verdict.c_str(), double(found.p_value), arguments[i]);
            } catch (const std::runtime_error& error) {
                std::fprintf(stderr, "cannot read %s (%s)\n", arguments[i], error.what());
                code = 1;
            }
        }
        return code;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s: %s\n", arguments[1], error.what());
        return 1;
    }
}
