"""What a vote is: noise, noise levels, classifiers, sifting."""
